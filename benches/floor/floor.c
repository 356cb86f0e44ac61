/*
 * The floor under every container runtime: a program that makes only the system calls a container
 * cannot do without, and runs a static program in it. No configuration is read, no state is kept, no error
 * is explained. `scripts/bench containers` runs it beside berth-oci and its peers; the distance
 * to it is what a runtime itself costs.
 *
 * What it does: control groups made in every v1 hierarchy of the host and in v2, one clone into new
 * pid, network, mount, IPC and UTS namespaces, the child in its groups, proc, tmpfs, devpts, shm, mqueue
 * and sysfs, six device nodes, two masks, four read-only paths, pivot_root, execve; wait; groups removed.
 *
 * Usage: floor ROOTFS PROGRAM   (as root; build: cc -O2 -static -o floor floor.c)
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
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

#define GROUPS_MAX_N 32

static char groups[GROUPS_MAX_N][128];
static int ngroups;

static void must(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
}

static void copy_file(const char *from, const char *to)
{
	char text[4096];
	int in = open(from, O_RDONLY), out = open(to, O_WRONLY);
	ssize_t len = in < 0 ? -1 : read(in, text, sizeof text);

	if (out >= 0 && len > 0)
		must((int)write(out, text, len), to);
	close(in);
	close(out);
}

/*
 * The parent of all groups of one hierarchy, made once and kept: a cpuset needs its parent's CPUs, and
 * clone_children hands them down at no cost per group.
 */
static void make_parent(const char *hierarchy)
{
	char dir[128], from[192], to[192];
	static const char *files[] = { "cpuset.cpus", "cpuset.mems" };

	snprintf(dir, sizeof dir, "%s/berth-floor", hierarchy);
	if (mkdir(dir, 0755) < 0)
		return;
	for (int i = 0; i < 2; i++) {
		snprintf(from, sizeof from, "%s/%s", hierarchy, files[i]);
		snprintf(to, sizeof to, "%s/%s", dir, files[i]);
		copy_file(from, to);
	}
	snprintf(to, sizeof to, "%s/cgroup.clone_children", dir);
	int fd = open(to, O_WRONLY);
	if (fd >= 0)
		must((int)write(fd, "1", 1), to);
	close(fd);
}

static void make_group(const char *hierarchy)
{
	make_parent(hierarchy);
	snprintf(groups[ngroups], sizeof groups[0], "%.80s/berth-floor/%d", hierarchy, getpid());
	must(mkdir(groups[ngroups], 0755), groups[ngroups]);
	ngroups++;
}

/* One directory per hierarchy below /sys/fs/cgroup (on a v2-only host that is the one). */
static void make_groups(void)
{
	DIR *dir = opendir("/sys/fs/cgroup");
	struct dirent *entry;
	char path[80];

	if (access("/sys/fs/cgroup/cgroup.procs", F_OK) == 0)
		make_group("/sys/fs/cgroup");
	else
		while (dir && (entry = readdir(dir)) && ngroups < GROUPS_MAX_N)
			if (entry->d_name[0] != '.' && entry->d_type == DT_DIR) {
				/* A directory may be there with nothing mounted on it. */
				snprintf(path, sizeof path, "/sys/fs/cgroup/%.40s/cgroup.procs", entry->d_name);
				if (access(path, F_OK) != 0)
					continue;
				snprintf(path, sizeof path, "/sys/fs/cgroup/%.60s", entry->d_name);
				make_group(path);
			}
	if (dir)
		closedir(dir);
}

static void enter_groups(void)
{
	char path[160];

	for (int i = 0; i < ngroups; i++) {
		/* "tasks" (v1) takes a single thread without the lock that waits for RCU. */
		snprintf(path, sizeof path, "%.127s/tasks", groups[i]);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0) {
			snprintf(path, sizeof path, "%.127s/cgroup.procs", groups[i]);
			fd = open(path, O_WRONLY | O_CLOEXEC);
		}
		must(fd, path);
		must((int)write(fd, "0", 1), path);
		close(fd);
	}
}

static void node(const char *path, int major, int minor)
{
	must(mknod(path, S_IFCHR | 0666, makedev(major, minor)), path);
}

static void readonly(const char *path)
{
	must(mount(path, path, NULL, MS_BIND | MS_REC, NULL), path);
	must(mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), path);
}

static void child(const char *root, char *program)
{
	char *argv[] = { program, NULL }, *envp[] = { NULL };
	unsigned long quiet = MS_NOSUID | MS_NOEXEC | MS_NODEV;

	enter_groups();
	setsid();
	must(sethostname("floor", 5), "sethostname");
	must(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "slave");
	must(mount(root, root, NULL, MS_BIND | MS_REC, NULL), "bind");
	must(chdir(root), "chdir");
	umask(0);
	must(mount("proc", "proc", "proc", quiet, NULL), "proc");
	must(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755,size=65536k"), "dev");
	must(mkdir("dev/pts", 0755), "dev/pts");
	must(mkdir("dev/shm", 0755), "dev/shm");
	must(mkdir("dev/mqueue", 0755), "dev/mqueue");
	must(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
		   "newinstance,ptmxmode=0666,mode=0620,gid=5"), "devpts");
	must(mount("shm", "dev/shm", "tmpfs", quiet, "mode=1777,size=65536k"), "shm");
	must(mount("mqueue", "dev/mqueue", "mqueue", quiet, NULL), "mqueue");
	must(mount("sysfs", "sys", "sysfs", quiet | MS_RDONLY, NULL), "sysfs");
	node("dev/null", 1, 3);
	node("dev/zero", 1, 5);
	node("dev/full", 1, 7);
	node("dev/random", 1, 8);
	node("dev/urandom", 1, 9);
	node("dev/tty", 5, 0);
	must(mount("/dev/null", "proc/timer_list", NULL, MS_BIND, NULL), "mask file");
	must(mount("tmpfs", "sys/firmware", "tmpfs", MS_RDONLY, "size=0"), "mask directory");
	readonly("proc/bus");
	readonly("proc/fs");
	readonly("proc/irq");
	readonly("proc/sys");
	must((int)syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount");
	must(chdir("/"), "chdir /");
	execve(program, argv, envp);
	err(127, "%s", program);
}

int main(int argc, char **argv)
{
	int status;

	if (argc != 3)
		errx(2, "usage: floor ROOTFS PROGRAM");
	make_groups();
	long pid = syscall(SYS_clone,
			   CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD,
			   NULL, NULL, NULL, NULL);
	must((int)pid, "clone");
	if (pid == 0)
		child(argv[1], argv[2]);
	must(waitpid((pid_t)pid, &status, 0), "wait");
	for (int i = 0; i < ngroups; i++)
		must(rmdir(groups[i]), groups[i]);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
