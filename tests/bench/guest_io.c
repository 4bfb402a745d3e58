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
 * Direct I/O from inside a guest, on several disks in turn: for each figure
 * threads read or write past the guest's page cache, TURNS times on each
 * disk, and every turn begins with another disk. So what the machine does
 * meanwhile meets all of them. The first half of a disk is read, the second
 * written: once through, so that its clusters are there, and then at random.
 * Last of all comes what a new guest does most: the first write to each
 * cluster of the first half, whose other bytes are the image's. Prints a list
 * of JSON objects on a line, one for each disk.
 *
 *   guest_io SECONDS MIB DEVICE...
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
#define TURNS 12
#define DISKS 8
#define CLUSTER (64 * 1024L)

static int fd, turn;
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
    uint64_t seed = 88172645463325252ULL + 7919 * job->number + 104729 * turn;
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

/* A figure: size bytes of each block are read or written, and with once
 * every block no more than once. */
struct figure {
    const char *name;
    int second_half;
    long block, size;
    int random, writing, once, threads;
};

static const struct figure figures[] = {
    {"seq_read", 0, MIB, MIB, 0, 0, 0, 4},
    {"rand_read", 0, 4096, 4096, 1, 0, 0, DEPTH},
    {"seq_write", 1, MIB, MIB, 0, 1, 0, 4},
    {"rand_write", 1, 4096, 4096, 1, 1, 0, DEPTH},
    {"first_write", 0, CLUSTER, 4096, 0, 1, 1, DEPTH},
};
#define FIGURES ((int)(sizeof(figures) / sizeof(figures[0])))

struct sum {
    long done;
    double seconds;
};

static void run(const struct figure *figure, long half, double seconds,
                struct sum *sum)
{
    pthread_t thread[DEPTH];
    struct job job[DEPTH];
    double begin = now();

    until = begin + seconds;
    for (int i = 0; i < figure->threads; i++) {
        job[i] = (struct job){figure->second_half ? half : 0, half,
                              figure->block, figure->size, figure->random,
                              figure->writing, figure->once, i,
                              figure->threads, 0};
        if (pthread_create(&thread[i], NULL, work, &job[i]))
            exit(1);
    }
    for (int i = 0; i < figure->threads; i++) {
        pthread_join(thread[i], NULL);
        sum->done += job[i].done;
    }
    if (figure->writing)
        fdatasync(fd);
    sum->seconds += now() - begin;
}

static void fill(long half)
{
    static char zeros[1024 * 1024] __attribute__((aligned(4096)));

    zeros[0] = 1;
    for (long at = half; at < 2 * half; at += MIB)
        if (pwrite(fd, zeros, MIB, at) != MIB) {
            perror("guest_io");
            exit(1);
        }
    fdatasync(fd);
}

int main(int count, char **words)
{
    static struct sum sums[FIGURES][DISKS];
    int fds[DISKS], disks = count - 3;
    double seconds;
    long half;

    if (disks < 1 || disks > DISKS)
        return 2;
    seconds = atof(words[1]);
    half = atol(words[2]) * MIB / 2;
    for (int disk = 0; disk < disks; disk++) {
        fds[disk] = fd = open(words[3 + disk], O_RDWR | O_DIRECT);
        if (fd < 0) {
            perror(words[3 + disk]);
            return 1;
        }
        fill(half);
    }
    for (int i = 0; i < FIGURES; i++) {
        int turns = figures[i].once ? 1 : TURNS;
        for (turn = 0; turn < turns; turn++)
            for (int n = 0; n < disks; n++) {
                int disk = (turn + n) % disks;
                fd = fds[disk];
                run(&figures[i], half, seconds * TURNS / turns,
                    &sums[i][disk]);
            }
    }
    printf("\nMH-IO [");
    for (int disk = 0; disk < disks; disk++) {
        printf("%s{", disk ? ", " : "");
        for (int i = 0; i < FIGURES; i++)
            printf("%s\"%s\": %.1f", i ? ", " : "", figures[i].name,
                   sums[i][disk].done / sums[i][disk].seconds);
        printf("}");
    }
    printf("]\n");
    fflush(stdout);
    return 0;
}
