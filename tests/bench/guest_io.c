/* Licensed under the Apache License, Version 2.0 (the "License"); you may
 * not use this file except in compliance with the License. You may obtain
 * a copy of the License at
 *
 *      http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software
 * distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
 * WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
 * License for the specific language governing permissions and limitations
 * under the License.
 *
 * Direct I/O from inside a guest: for each figure, threads that read or
 * write past the guest's page cache for some seconds. The first half of the
 * disk is read, the second written: once through, so that its clusters are
 * there, and then at random. Last of all comes what a new guest does most:
 * the first write to each cluster of the first half, whose other bytes are
 * the image's. Prints one JSON object on a line.
 *
 *   guest_io DEVICE SECONDS MIB
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MIB (1024 * 1024L)
#define DEPTH 16
#define CLUSTER (64 * 1024L)

static int fd;
static double until;

struct job {
    long start, length, block, size;
    int random, writing, once, number, threads;
    long done;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void *work(void *argument)
{
    struct job *job = argument;
    long blocks = job->length / job->block, at = job->number;
    uint64_t seed = 88172645463325252ULL + 7919 * job->number;
    void *buffer;

    if (posix_memalign(&buffer, 4096, job->block))
        return NULL;
    memset(buffer, 0x5a + job->number, job->block);
    while (now() < until) {
        long block = at % blocks, got;
        if (job->random) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            block = (long)(seed % (uint64_t)blocks);
        }
        if (job->once) {
            /* an odd factor: each of a power of two comes once */
            if (at >= blocks)
                break;
            block = at * 2654435761L % blocks;
        }
        if (job->writing)
            got = pwrite(fd, buffer, job->size,
                         job->start + block * job->block);
        else
            got = pread(fd, buffer, job->size,
                        job->start + block * job->block);
        if (got != job->size) {
            perror("guest_io");
            exit(1);
        }
        job->done++;
        at += job->threads;
    }
    free(buffer);
    return NULL;
}

/* Blocks per second; size bytes of each are read or written, and with once
 * every block no more than once. */
static double run(long start, long length, long block, long size,
                  int random, int writing, int once, int threads,
                  double seconds)
{
    pthread_t thread[DEPTH];
    struct job job[DEPTH];
    long done = 0;
    double begin = now();

    until = begin + seconds;
    for (int i = 0; i < threads; i++) {
        job[i] = (struct job){start, length, block, size, random, writing,
                              once, i, threads, 0};
        if (pthread_create(&thread[i], NULL, work, &job[i]))
            exit(1);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
        done += job[i].done;
    }
    if (writing)
        fdatasync(fd);
    return done / (now() - begin);
}

int main(int count, char **words)
{
    double seconds;
    long half;

    if (count != 4)
        return 2;
    fd = open(words[1], O_RDWR | O_DIRECT);
    if (fd < 0) {
        perror(words[1]);
        return 1;
    }
    seconds = atof(words[2]);
    half = atol(words[3]) * MIB / 2;
    /* once through, unmeasured: the clusters of the second half */
    for (long at = half; at < 2 * half; at += MIB) {
        static char zeros[1024 * 1024] __attribute__((aligned(4096)));
        zeros[0] = 1;
        if (pwrite(fd, zeros, MIB, at) != MIB)
            return 1;
    }
    fdatasync(fd);
    double seq_read = run(0, half, MIB, MIB, 0, 0, 0, 4, seconds);
    double rand_read = run(0, half, 4096, 4096, 1, 0, 0, DEPTH, seconds);
    double seq_write = run(half, half, MIB, MIB, 0, 1, 0, 4, seconds);
    double rand_write = run(half, half, 4096, 4096, 1, 1, 0, DEPTH, seconds);
    double first_write = run(0, half, CLUSTER, 4096, 0, 1, 1, DEPTH, seconds);
    printf("\nMH-IO {\"seq_read\": %.1f, \"rand_read\": %.1f, "
           "\"seq_write\": %.1f, \"rand_write\": %.1f, "
           "\"first_write\": %.1f}\n",
           seq_read, rand_read, seq_write, rand_write, first_write);
    fflush(stdout);
    return 0;
}
