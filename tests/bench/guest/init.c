// SPDX-License-Identifier: Apache-2.0
// PID 1 of the benchmark guests, the same under every monitor: a static program, alone in its initrd.
// The kernel hands unknown NAME=VALUE words of its command line to PID 1 as environment:
//   bench=boot  (default) print "@M boot", end
//   bench=idle  print "@M boot", then sleep for ever: the monitor can be looked at
//   bench=blk   measure /dev/vda with O_DIRECT, print "@B start NAME" and "@B NAME VALUE UNIT OPERATIONS" for each figure, end
//   bench_ms=N  milliseconds for each figure of blk (1000)
//   bench_end=off|reset  how to end: ACPI power off (default) or reset
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#ifndef BLKGETSIZE64 /* glibc 2.36 and newer */
#define BLKGETSIZE64 _IOR(0x12, 114, size_t) /* linux/fs.h */
#endif
enum { MIB = 1 << 20, BLOCK = 4096, DEPTH = 8 };

static void say(const char *format, ...) {
    char line[256];
    va_list list;
    va_start(list, format);
    int length = vsnprintf(line, sizeof line, format, list);
    va_end(list);
    if (write(1, line, length) != length)
        _exit(3);
}

static void end(void) {
    const char *how = getenv("bench_end");
    tcdrain(1); // power off does not wait for the serial line
    sync();
    reboot(how && !strcmp(how, "reset") ? RB_AUTOBOOT : RB_POWER_OFF);
    for (;;)
        pause();
}

static void fail(const char *what) {
    say("@B error %s: %s\n", what, strerror(errno));
    end();
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint64_t seed = 88172645463325252ull;
static uint64_t next(void) { // xorshift64: the same places under every monitor
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static double span; // seconds per figure
static uint64_t size;
static char *buffer;

static void sequential(int disk, int writing) {
    const char *name = writing ? "seqwrite" : "seqread";
    say("@B start %s\n", name);
    double start = now(), spent;
    uint64_t done = 0;
    do {
        uint64_t at = done % (size / MIB * MIB);
        ssize_t n = writing ? pwrite(disk, buffer, MIB, at) : pread(disk, buffer, MIB, at);
        if (n != MIB)
            fail("sequential");
        done += MIB;
        spent = now() - start;
    } while (spent < span);
    say("@B %s %.1f MB/s %lu\n", name, done / spent / 1e6, (unsigned long)(done / MIB));
}

static void single(int disk, int writing) {
    const char *name = writing ? "write4k_sync" : "randread_qd1";
    say("@B start %s\n", name);
    double start = now(), spent;
    unsigned long done = 0;
    do {
        uint64_t at = next() % (size / BLOCK) * BLOCK;
        ssize_t n = writing ? pwrite(disk, buffer, BLOCK, at) : pread(disk, buffer, BLOCK, at);
        if (n != BLOCK || (writing && fdatasync(disk)))
            fail("single");
        done++;
        spent = now() - start;
    } while (spent < span);
    say("@B %s %.2f us %lu\n", name, spent / done * 1e6, done);
}

static void deep(int disk) {
    aio_context_t context = 0;
    struct iocb block[DEPTH], *free_blocks[DEPTH];
    struct io_event events[DEPTH];
    if (syscall(SYS_io_setup, DEPTH, &context))
        fail("io_setup");
    memset(block, 0, sizeof block);
    int idle = DEPTH;
    for (int i = 0; i < DEPTH; i++)
        free_blocks[i] = &block[i];
    say("@B start randread_qd8\n");
    double start = now(), spent;
    unsigned long done = 0;
    do {
        for (int i = 0; i < idle; i++) {
            struct iocb *b = free_blocks[i];
            b->aio_lio_opcode = IOCB_CMD_PREAD;
            b->aio_fildes = disk;
            b->aio_buf = (uintptr_t)(buffer + (b - block) * BLOCK);
            b->aio_nbytes = BLOCK;
            b->aio_offset = next() % (size / BLOCK) * BLOCK;
        }
        if (syscall(SYS_io_submit, context, idle, free_blocks) != idle)
            fail("io_submit");
        idle = syscall(SYS_io_getevents, context, 1, DEPTH, events, NULL);
        if (idle < 1)
            fail("io_getevents");
        for (int i = 0; i < idle; i++) {
            if (events[i].res != BLOCK)
                fail("read of a batch");
            free_blocks[i] = (struct iocb *)(uintptr_t)events[i].obj;
        }
        done += idle;
        spent = now() - start;
    } while (spent < span);
    say("@B randread_qd8 %.0f iops %lu\n", done / spent, done);
}

static void measure_disk(void) {
    mkdir("/dev", 0755);
    if (mount("dev", "/dev", "devtmpfs", 0, NULL) && errno != EBUSY)
        fail("mount /dev");
    int disk = open("/dev/vda", O_RDWR | O_DIRECT);
    if (disk < 0)
        fail("open /dev/vda");
    if (ioctl(disk, BLKGETSIZE64, &size) || size < MIB)
        fail("size of /dev/vda");
    if (posix_memalign((void **)&buffer, BLOCK, MIB))
        fail("memory");
    memset(buffer, 0x5a, MIB);
    const char *ms = getenv("bench_ms");
    span = (ms ? atof(ms) : 1000) / 1e3;
    if (pread(disk, buffer, MIB, 0) != MIB) // the first request also pays for lazy set-up
        fail("first read");
    sequential(disk, 0);
    sequential(disk, 1);
    single(disk, 0);
    deep(disk);
    single(disk, 1);
}

int main(void) {
    if (getpid() != 1)
        return 2;
    const char *bench = getenv("bench");
    if (bench && !strcmp(bench, "blk")) {
        measure_disk();
    } else {
        say("@M boot\n");
        if (bench && !strcmp(bench, "idle"))
            for (;;)
                pause();
    }
    end();
}
