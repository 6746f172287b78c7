/* Private file mappings: modified, unmodified, at an offset, past the end; one of a deleted file. */
#include "victim.h"
#include <setjmp.h>

#define FILE_PAGES 8

static char path[64];
static char *whole, *offset, *deleted, *past_end;
static sigjmp_buf back;
static volatile int code;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	code = info->si_code;
	siglongjmp(back, 1);
}

static int make_file(const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	must(fd >= 0, name);
	for (int page = 0; page < FILE_PAGES; page++) {
		char bytes[4096];
		memset(bytes, 'a' + page, sizeof bytes);
		must(write(fd, bytes, sizeof bytes) == sizeof bytes, "write");
	}
	return fd;
}

static char *map(int fd, int pages, int protection, int from_page)
{
	char *at = mmap(NULL, pages * 4096, protection, MAP_PRIVATE, fd, from_page * 4096);
	must(at != MAP_FAILED, "mmap");
	return at;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	snprintf(path, sizeof path, "/tmp/victim-filemap-%d", getpid());
	int fd = make_file(path);
	whole = map(fd, FILE_PAGES, PROT_READ | PROT_WRITE, 0);
	offset = map(fd, 2, PROT_READ, 3);
	past_end = map(fd, 2, PROT_READ, FILE_PAGES - 1);
	close(fd);
	whole[4096] = 'X';
	char gone[80];
	snprintf(gone, sizeof gone, "%s-deleted", path);
	fd = make_file(gone);
	deleted = map(fd, FILE_PAGES, PROT_READ | PROT_WRITE, 0);
	close(fd);
	unlink(gone);
	/* The name is taken by another file with other bytes. */
	fd = open(gone, O_RDWR | O_CREAT, 0600);
	must(fd >= 0, "impostor");
	unlink(gone);
	close(fd);
	unlink(path);
	fd = make_file(path);
	ftruncate(fd, 0);
	close(fd);
	unlink(path);
	deleted[0] = 'Y';
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	sigaction(SIGBUS, &action, NULL);
}

static void step(void)
{
	for (int page = 0; page < FILE_PAGES; page++) {
		expect_equal("whole", 'a' + page, whole[page * 4096 + 17]);
		expect_equal("deleted", 'a' + page, deleted[page * 4096 + 17]);
	}
	expect_equal("modified byte", 'X', whole[4096]);
	expect_equal("modified byte of the deleted file", 'Y', deleted[0]);
	expect_equal("beside it", 'a', deleted[1]);
	expect_equal("at an offset", 'd', offset[0]);
	expect_equal("at an offset, second page", 'e', offset[4096]);
	expect_equal("last page", 'a' + FILE_PAGES - 1, past_end[0]);
}

static void check(void)
{
	step();
	code = 0;
	if (!sigsetjmp(back, 1)) {
		volatile char byte = past_end[4096];
		(void)byte;
	}
	expect_equal("past the end of the file", BUS_ADRERR, code);
	whole[5 * 4096] = 'f';
	expect_equal("written after", 'f', whole[5 * 4096]);
}
