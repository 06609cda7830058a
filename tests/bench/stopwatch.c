// SPDX-License-Identifier: Apache-2.0
// stopwatch [-t SECONDS] [-p] [-m MARKER] [-i GUEST_KIB] [-e] -- CMD…
// Runs CMD on a pty (-p: on a pipe) and prints one line of NAME=VALUE:
//   first_ms   from before fork to the first byte of output
//   marker_ms  to the first line that contains MARKER
//   exit_ms    to the end of the process as its parent sees it
//   cpu_ms, maxrss_kb, status (128+n for a signal)
// With -i the process is looked at when the marker comes, and then killed: rss_kb and anon_kb (mappings of at least half
// the guest's memory left out), threads, fds, and what /sys/kernel/debug/kvm counts (exits, io_exits, mmio_exits,
// irq_injections; these are sums over all VMs of the host).
// With -e each line of output that begins with "@B" is repeated on stdout, after KVM's count of exits when it came.
// Output of CMD goes to stderr. Status: 0; 124 when CMD was killed after SECONDS (60); 125 for our own errors.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) {
    fprintf(stderr, "stopwatch: %s: %s\n", what, strerror(errno));
    exit(125);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static long entries(pid_t pid, const char *of) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, of);
    DIR *dir = opendir(path);
    if (!dir)
        return -1;
    long count = 0;
    for (struct dirent *e; (e = readdir(dir));)
        count += e->d_name[0] != '.';
    closedir(dir);
    return count;
}

static void memory(pid_t pid, long guest_kib) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/smaps", pid);
    FILE *file = fopen(path, "r");
    if (!file)
        die(path);
    long size = 0, value, rss = 0, anon = 0, guest = 0;
    int ours = 0, of_guest = 0;
    while (fgets(line, sizeof line, file)) {
        // vsc-run's guest memory is pieces of its memfd and of the kernel in its cache; others' is one large mapping.
        long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            ours = strstr(line, "/memfd:vsc:") || strstr(line, "/vsc/kernels/");
        if (sscanf(line, "Size: %ld kB", &value) == 1) {
            size = value;
            of_guest = ours || size >= guest_kib / 2;
        } else if (sscanf(line, "Rss: %ld kB", &value) == 1)
            *(of_guest ? &guest : &rss) += value;
        else if (sscanf(line, "Anonymous: %ld kB", &value) == 1 && !of_guest)
            anon += value;
    }
    fclose(file);
    printf("rss_kb=%ld anon_kb=%ld guest_kb=%ld ", rss, anon, guest);
}

static long counter(const char *name) { // -1 where debugfs is not mounted
    char path[64];
    long value;
    snprintf(path, sizeof path, "/sys/kernel/debug/kvm/%s", name);
    FILE *file = fopen(path, "r");
    if (!file)
        return -1;
    if (fscanf(file, "%ld", &value) != 1)
        value = -1;
    fclose(file);
    return value;
}

static void counters(void) {
    static const char *const names[] = {"exits", "io_exits", "mmio_exits", "irq_injections"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        long value = counter(names[i]);
        if (value >= 0)
            printf("%s=%ld ", names[i], value);
    }
}

// Whole lines among the n new bytes; a line may come in pieces.
static void echo_lines(const char *bytes, size_t n) {
    static char line[512];
    static size_t length;
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] != '\n' && bytes[i] != '\r') {
            if (length < sizeof line - 1)
                line[length++] = bytes[i];
            continue;
        }
        line[length] = 0;
        length = 0;
        if (!strncmp(line, "@B", 2))
            printf("%ld %s\n", counter("exits"), line);
    }
}

int main(int argc, char **argv) {
    const char *marker = NULL;
    double limit = 60;
    long guest_kib = 0;
    int pipes = 0, echo = 0, option;
    while ((option = getopt(argc, argv, "+t:pm:i:e")) != -1) {
        switch (option) {
        case 't': limit = atof(optarg); break;
        case 'p': pipes = 1; break;
        case 'e': echo = 1; break;
        case 'm': marker = optarg; break;
        case 'i': guest_kib = atol(optarg); break;
        default: return 125;
        }
    }
    if (optind == argc) {
        fprintf(stderr, "usage: stopwatch [-t SECONDS] [-p] [-m MARKER] [-i GUEST_KIB] [-e] -- CMD…\n");
        return 125;
    }
    int ours, theirs, ends[2];
    if (pipes) {
        if (pipe2(ends, O_CLOEXEC))
            die("pipe");
        ours = ends[0], theirs = ends[1];
    } else {
        ours = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (ours < 0 || grantpt(ours) || unlockpt(ours))
            die("pty");
        theirs = open(ptsname(ours), O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (theirs < 0)
            die("pty");
    }
    // Above the monitor's own threads, so that a byte is stamped when it comes.
    struct sched_param priority = {.sched_priority = 1};
    sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &priority);

    double start = now();
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (!child) {
        setsid();
        if (pipes)
            dup2(open("/dev/null", O_RDONLY), 0);
        else
            ioctl(theirs, TIOCSCTTY, 0), dup2(theirs, 0);
        dup2(theirs, 1);
        dup2(theirs, 2);
        execvp(argv[optind], argv + optind);
        _exit(127);
    }
    close(theirs);

    static char text[1 << 16];
    size_t length = 0;
    double first = -1, seen = -1;
    int late = 0, inspected = 0;
    for (;;) {
        struct pollfd wait = {.fd = ours, .events = POLLIN};
        double left = start + limit * 1e3 - now();
        int ready = left > 0 ? poll(&wait, 1, (int)left + 1) : 0;
        double at = now();
        if (!ready) {
            late = 1;
            kill(child, SIGKILL);
            break;
        }
        char *to = text + length;
        ssize_t n = read(ours, to, sizeof text - 1 - length);
        if (n <= 0)
            break; // end of file, or EIO when the last holder of the pty closed it
        if (first < 0)
            first = at - start;
        if (echo)
            echo_lines(to, n);
        if (write(2, to, n) != n)
            die("write");
        length += n;
        text[length] = 0;
        if (marker && seen < 0 && strstr(text, marker)) {
            seen = at - start;
            if (guest_kib) {
                counters();
                memory(child, guest_kib);
                printf("threads=%ld fds=%ld ", entries(child, "task"), entries(child, "fd"));
                inspected = 1;
                kill(child, SIGKILL);
                break;
            }
        }
        if (length > sizeof text / 2) { // keep a tail in which a marker may be split
            memmove(text, text + length - 256, 256);
            length = 256;
        }
    }
    int status;
    struct rusage used;
    if (wait4(child, &status, 0, &used) != child)
        die("wait4");
    double end = now() - start;
    double cpu = (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e3 + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e3;
    printf("first_ms=%.2f marker_ms=%.2f exit_ms=%.2f cpu_ms=%.1f maxrss_kb=%ld status=%d\n", first, seen, inspected ? -1 : end,
           cpu, used.ru_maxrss, WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
    return late ? 124 : 0;
}
