/* Descriptors: offsets, flags, append, a read at the end, a pipe to oneself, cwd and umask. */
#include "victim.h"
#include <sys/stat.h>

static char path[64], directory[256];
static int file, twin, appending, pipe_ends[2];
static long rounds;
static const char constant[16] = "constant";

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	snprintf(path, sizeof path, "/tmp/victim-files-%d", getpid());
	file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	appending = open(path, O_WRONLY | O_APPEND);
	twin = dup2(file, 200);
	must(file >= 0 && appending >= 0 && twin == 200 && pipe(pipe_ends) == 0, "descriptors");
	unlink(path);
	umask(027);
	must(chdir("/usr/lib") == 0 && getcwd(directory, sizeof directory), "chdir");
}

static void step(void)
{
	long seen = -1;
	rounds++;
	expect_equal("append", sizeof rounds, write(appending, &rounds, sizeof rounds));
	expect_equal("read through the twin", sizeof seen, read(twin, &seen, sizeof seen));
	expect_equal("what was appended", rounds, seen);
	expect_equal("read at the end", 0, read(file, &seen, sizeof seen));
	expect_equal("shared offset", rounds * sizeof rounds, lseek(file, 0, SEEK_CUR));
	expect_equal("pipe in", sizeof rounds, write(pipe_ends[1], &rounds, sizeof rounds));
	expect_equal("pipe out", sizeof seen, read(pipe_ends[0], &seen, sizeof seen));
	expect_equal("through the pipe", rounds, seen);
}

static void check(void)
{
	struct stat status;
	char now[256] = "";
	expect_equal("fstat", 0, fstat(file, &status));
	expect_equal("size", rounds * sizeof rounds, status.st_size);
	expect_equal("mode", S_IFREG | 0640, status.st_mode);
	expect_equal("links", 0, status.st_nlink);
	expect_equal("FD_CLOEXEC", FD_CLOEXEC, fcntl(file, F_GETFD));
	expect_equal("no FD_CLOEXEC", 0, fcntl(twin, F_GETFD));
	expect_equal("O_APPEND", O_APPEND, fcntl(appending, F_GETFL) & O_APPEND);
	expect_equal("bad descriptor", -1, write(150, "x", 1));
	expect_equal("EBADF", EBADF, errno);
	expect_equal("getcwd", 0, getcwd(now, sizeof now) ? strcmp(now, directory) : -1);
	mode_t mask = umask(027);
	expect_equal("umask", 027, mask);
	long first = 0;
	expect_equal("pread", sizeof first, pread(file, &first, sizeof first, 0));
	expect_equal("first word", 1, first);
	/* What a bad buffer cannot take stays in the pipe. */
	expect_equal("pipe in", sizeof first, write(pipe_ends[1], &first, sizeof first));
	expect_equal("into nothing", -1, read(pipe_ends[0], (void *)0x10000, sizeof first));
	expect_equal("EFAULT", EFAULT, errno);
	expect_equal("into a constant", -1, read(pipe_ends[0], (void *)constant, sizeof first));
	expect_equal("EFAULT", EFAULT, errno);
	expect_equal("kept", sizeof first, read(pipe_ends[0], &first, sizeof first));
	step();
}
