/* The least a container can cost on this kernel: only the system calls that make one, in the order a
 * runtime needs them, with nothing parsed, checked or logged. `floor ROOTFS PROGRAM` is the figure
 * that every runtime is measured against; it is not a runtime.
 *
 * Five namespaces, a private root with proc, dev, devpts, shm, mqueue and sysfs, six device nodes,
 * masked and read-only paths, pivot_root, and one control group in each v1 hierarchy (or one v2
 * group), made, entered and removed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const HIERARCHIES[] = {"cpu",     "cpuacct", "cpuset", "memory", "devices",
                                          "freezer", "blkio",   "pids",   "systemd"};
enum { COUNT = sizeof HIERARCHIES / sizeof *HIERARCHIES };

static void need(int result, const char *what) {
    if (result < 0) {
        fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
        _exit(125);
    }
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    need(fd, path);
    need(write(fd, text, strlen(text)), path);
    close(fd);
}

/* A group of a v1 hierarchy, or of v2 when `hierarchy` is empty. */
static void group_path(char *out, size_t size, const char *hierarchy, pid_t pid) {
    snprintf(out, size, "/sys/fs/cgroup/%s/berth-floor-%d", hierarchy, pid);
}

static void enter_groups(int v2, pid_t pid) {
    char path[256], file[300], number[16];
    snprintf(number, sizeof number, "%d", pid);
    for (int i = 0; i < (v2 ? 1 : COUNT); i++) {
        const char *hierarchy = v2 ? "" : HIERARCHIES[i];
        group_path(path, sizeof path, hierarchy, pid);
        need(mkdir(path, 0755), path);
        if (!strcmp(hierarchy, "cpuset")) { /* empty until copied from the parent */
            const char *const files[] = {"cpuset.cpus", "cpuset.mems"};
            for (int f = 0; f < 2; f++) {
                char value[256];
                snprintf(file, sizeof file, "/sys/fs/cgroup/cpuset/%s", files[f]);
                int fd = open(file, O_RDONLY | O_CLOEXEC);
                need(fd, file);
                ssize_t length = read(fd, value, sizeof value - 1);
                close(fd);
                value[length > 0 ? length : 0] = 0;
                snprintf(file, sizeof file, "%s/%s", path, files[f]);
                put(file, value);
            }
        }
        snprintf(file, sizeof file, "%s/cgroup.procs", path);
        put(file, number);
    }
}

static void leave_groups(int v2, pid_t pid) {
    char path[256];
    for (int i = 0; i < (v2 ? 1 : COUNT); i++) {
        group_path(path, sizeof path, v2 ? "" : HIERARCHIES[i], pid);
        need(rmdir(path), path);
    }
}

static void over(const char *kind, const char *at, unsigned long flags, const char *data) {
    mkdir(at, 0755);
    need(mount(kind, at, kind, flags, data), at);
}

static void inside(const char *root, char *const program[]) {
    const unsigned long quiet = MS_NOSUID | MS_NOEXEC | MS_NODEV;
    static const struct { const char *name; int minor; } nodes[] = {
        {"dev/null", 3}, {"dev/zero", 5}, {"dev/full", 7}, {"dev/random", 8}, {"dev/urandom", 9}};
    static const char *const masked[] = {"proc/kcore", "proc/keys", "proc/timer_list"};
    static const char *const read_only[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys"};

    need(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
    need(mount(root, root, NULL, MS_BIND | MS_REC, NULL), root);
    need(chdir(root), root);
    over("proc", "proc", quiet, NULL);
    over("tmpfs", "dev", MS_NOSUID, "mode=755,size=64k");
    over("devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620");
    over("tmpfs", "dev/shm", quiet, "mode=1777,size=64m");
    over("mqueue", "dev/mqueue", quiet, NULL);
    over("sysfs", "sys", quiet | MS_RDONLY, NULL);
    umask(0);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        need(mknod(nodes[i].name, S_IFCHR | 0666, makedev(1, nodes[i].minor)), nodes[i].name);
    need(mknod("dev/tty", S_IFCHR | 0666, makedev(5, 0)), "dev/tty");
    umask(022);
    for (size_t i = 0; i < sizeof masked / sizeof *masked; i++)
        if (mount("dev/null", masked[i], NULL, MS_BIND, NULL) < 0 && errno != ENOENT) need(-1, masked[i]);
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
        if (mount(read_only[i], read_only[i], NULL, MS_BIND | MS_REC, NULL) < 0) continue;
        need(mount(NULL, read_only[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | quiet, NULL), read_only[i]);
    }
    need(sethostname("floor", 5), "hostname");
    need(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    need(umount2(".", MNT_DETACH), "the old root");
    need(chdir("/"), "/");
    execv(program[0], program);
    need(-1, program[0]);
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: floor ROOTFS PROGRAM\n");
        return 2;
    }
    struct stat meta;
    int v2 = stat("/sys/fs/cgroup/cgroup.controllers", &meta) == 0;
    int go[2];
    need(pipe2(go, O_CLOEXEC), "pipe");
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD,
                               NULL, NULL, NULL, NULL);
    need(pid, "clone");
    if (pid == 0) {
        char byte;
        close(go[1]);
        if (read(go[0], &byte, 1) != 1) _exit(125);
        inside(argv[1], argv + 2);
    }
    enter_groups(v2, pid);
    need(write(go[1], "g", 1), "go");
    int status;
    need(waitpid(pid, &status, 0), "wait");
    leave_groups(v2, pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}
