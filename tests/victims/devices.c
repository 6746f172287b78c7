/*
 * Null, zero and random devices, opened before and after a move, and their numbers given to other
 * files. "pour MIB" reads and writes so much of them.
 */
#define VICTIM_COMMAND
#define VICTIM_CLEAN_UP
#include "victim.h"
#include <sys/uio.h>

#define PAGE 4096
#define BLOCK 65536

static int null_fd, zero_fd, random_fd, sink_fd, file_fd;
static char path[64];
static unsigned char block[BLOCK], other[BLOCK];

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	null_fd = open("/dev/null", O_RDWR);
	zero_fd = open("/dev/zero", O_RDONLY);
	random_fd = open("/dev/urandom", O_RDONLY);
	sink_fd = open("/dev/null", O_WRONLY);
	snprintf(path, sizeof path, "/tmp/tcmi-devices-%d", getpid());
	file_fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	must(null_fd >= 0 && zero_fd >= 0 && random_fd >= 0 && sink_fd >= 0 && file_fd >= 0, "open");
}

static void clean_up(void)
{
	unlink(path);
}

static void step(void)
{
}

static int is_zero(const unsigned char *bytes)
{
	return bytes[0] == 0 && !memcmp(bytes, bytes + 1, BLOCK - 1);
}

static void failed_call(const char *what, int error, long result)
{
	expect_equal(what, -1, result);
	expect_equal(what, error, errno);
}

static void use(int null, int zero, int random, int sink)
{
	memset(block, 1, BLOCK);
	expect_equal("read zero", BLOCK, read(zero, block, BLOCK));
	expect_equal("zeros", 1, is_zero(block));
	expect_equal("read random", BLOCK, read(random, block, BLOCK));
	expect_equal("read random", BLOCK, read(random, other, BLOCK));
	expect_equal("random", 0, is_zero(block) || !memcmp(block, other, BLOCK));
	expect_equal("read null", 0, read(null, block, BLOCK));
	expect_equal("write null", BLOCK, write(null, block, BLOCK));
	expect_equal("write a sink", 10, write(sink, block, 10));
	expect_equal("write nothing", 0, write(sink, block, 0));
	expect_equal("read nothing", 0, read(zero, block, 0));
	failed_call("read a sink", EBADF, read(sink, block, 1));
	failed_call("write what is read", EBADF, write(zero, block, 1));
	failed_call("read zero into nothing", EFAULT, read(zero, (void *)8, 1));
	failed_call("read beyond", EFAULT, read(zero, (void *)-4096L, 1));
	failed_call("write from beyond", EFAULT, write(null, (void *)-4096L, 1));
	/* The buffer ends before the read does. */
	char *room = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(room != MAP_FAILED && munmap(room + PAGE, PAGE) == 0, "mmap");
	expect_equal("as much as there is room", 100, read(zero, room + PAGE - 100, 200));
	munmap(room, PAGE);
	struct iovec parts[2] = { { block, 10 }, { other, 10 } };
	expect_equal("in parts", 20, readv(zero, parts, 2));
	expect_equal("the position stays", 0, lseek(null, 0, SEEK_CUR));
}

/* Bytes for a file are not to go where something else was. */
static void expect_in_file(const char *what, int fd)
{
	char seen[16] = "";
	must(ftruncate(file_fd, 0) == 0 && lseek(file_fd, 0, SEEK_SET) == 0, "file");
	expect_equal(what, 6, write(fd, "a file", 6));
	expect_equal(what, 6, pread(file_fd, seen, 16, 0));
	expect_equal(what, 0, strcmp(seen, "a file"));
}

static void numbers_are_given_to_others(void)
{
	int fd = open("/dev/null", O_WRONLY);
	expect_equal("dup2", fd, dup2(file_fd, fd));
	expect_in_file("behind dup2", fd);
	expect_equal("back", fd, dup2(sink_fd, fd));
	expect_equal("a copy of null", 1, write(fd, "x", 1));
	expect_equal("dup3", fd, dup3(file_fd, fd, O_CLOEXEC));
	expect_in_file("behind dup3", fd);
	close(fd);
	fd = open("/dev/null", O_WRONLY);
	close(fd);
	expect_equal("the number again", fd, dup(file_fd));
	expect_in_file("behind close", fd);
	close(fd);
	fd = open("/dev/null", O_WRONLY);
	expect_equal("close_range", 0, syscall(SYS_close_range, fd, fd, 0));
	failed_call("closed", EBADF, write(fd, "x", 1));
	expect_equal("the number again", fd, dup(file_fd));
	expect_in_file("behind close_range", fd);
	close(fd);
	fd = open("/dev/null", O_PATH);
	failed_call("only a path", EBADF, write(fd, "x", 1));
	close(fd);
	failed_call("closed", EBADF, read(fd, block, 1));
}

static void check(void)
{
	use(null_fd, zero_fd, random_fd, sink_fd);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), zero = openat(AT_FDCWD, "/dev/zero", O_RDONLY);
	int random = open("/dev/urandom", O_RDONLY), sink = open("/dev/null", O_WRONLY | O_APPEND);
	use(null, zero, random, sink);
	close(null), close(zero), close(random), close(sink);
	numbers_are_given_to_others();
}

static void command(const char *line)
{
	int mib;
	if (sscanf(line, "pour %d", &mib) != 1)
		return;
	int late = open("/dev/zero", O_RDONLY);
	for (int i = 0; i < mib * 16; i++) {
		expect_equal("read", BLOCK, read(i % 2 ? zero_fd : late, block, BLOCK));
		expect_equal("write", BLOCK, write(sink_fd, block, BLOCK));
	}
	close(late);
	say("POURED\n");
}
