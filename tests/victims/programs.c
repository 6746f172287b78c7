/*
 * Executes programs in every form that there is: by name, from a descriptor, from a directory, by an
 * interpreter; and those that cannot be. What is executed tells what it finds, which the parent
 * compares.
 */
#define VICTIM_CLEAN_UP
#include "victim.h"
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define TOLD_BYTES 2048

extern char **environ;
static char directory[64], own[256];

/* Its name, its program, and its arguments. */
static _Noreturn void tell(int argc, char **argv)
{
	char name[32] = "", program[256] = "", text[TOLD_BYTES];
	prctl(PR_GET_NAME, name);
	readlink("/proc/self/exe", program, sizeof program - 1);
	int length = snprintf(text, sizeof text, "%s %s", name, program);
	for (int i = 0; i < argc && length < (int)sizeof text; i++)
		length += snprintf(text + length, sizeof text - length, " %.60s", argv[i]);
	_exit(write(1, text, strlen(text)) > 0 ? argc : 99);
}

static void put_file(const char *name, const char *text, mode_t mode)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
	must(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), name);
	close(fd);
}

static void copy_of_itself(const char *name)
{
	char block[65536];
	int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), to = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0700);
	must(from >= 0 && to >= 0, "a copy");
	for (ssize_t n; (n = read(from, block, sizeof block)) > 0;)
		must(write(to, block, n) == n, "a copy");
	close(from), close(to);
}

static void setup(int argc, char **argv)
{
	if (argc > 1 && (!strcmp(argv[1], "tell") || !strncmp(argv[1], "by ", 3)))
		tell(argc, argv);
	char script[400];
	snprintf(directory, sizeof directory, "/tmp/victim-programs-%d", getpid());
	must(mkdir(directory, 0700) == 0 && chdir(directory) == 0, "a directory");
	copy_of_itself("copy");
	snprintf(own, sizeof own, "%s/copy", directory);
	snprintf(script, sizeof script, "#! %s by  way\n", own);
	put_file("script", script, 0700);
	snprintf(script, sizeof script, "#!%s/script\n", directory);
	put_file("nested", script, 0700);
	put_file("shell", "#!/bin/sh\necho \"$0 $1 $#\"\nexit 12\n", 0700);
	put_file("empty", "", 0700);
	put_file("closed", "#!/bin/sh\n", 0600);
	put_file("lost", "#!/no/such/interpreter\n", 0700);
	must(symlink("copy", "link") == 0, "symlink");
}

enum form { BY_NAME, BY_DIRECTORY, FROM_DESCRIPTOR, BY_VFORK };

/* In a child: does not return, or ends it with the errno. */
static void execute(enum form form, int fd, const char *name, int flags, char **argv, char **env)
{
	if (form == BY_DIRECTORY || form == FROM_DESCRIPTOR)
		syscall(SYS_execveat, fd, name, argv, env, flags | (form == FROM_DESCRIPTOR ? AT_EMPTY_PATH : 0));
	else
		execve(name, argv, env);
	_exit(200);
}

/* What a program that is executed so tells, and its status. */
static int told(char *text, enum form form, int fd, const char *name, int flags, char **argv, char **env)
{
	int out[2], status = -1;
	volatile size_t length = 0;
	must(pipe(out) == 0, "pipe");
	pid_t child = form == BY_VFORK ? vfork() : fork();
	if (child == 0) {
		dup2(out[1], 1);
		close(out[0]), close(out[1]);
		execute(form, fd, name, flags, argv, env);
	}
	close(out[1]);
	for (ssize_t n; (n = read(out[0], text + length, TOLD_BYTES - 1 - length)) > 0;)
		length += n;
	text[length] = 0;
	close(out[0]);
	expect_equal("waitpid", child, waitpid(child, &status, 0));
	return WIFEXITED(status) ? WEXITSTATUS(status) : -status;
}

static void expect_told(const char *what, const char *expected, const char *text)
{
	char why[200];
	snprintf(why, sizeof why, "%s tells %.120s", what, text);
	expect_equal(why, 0, strcmp(expected, text));
}

static void every_form(void)
{
	char *argv[] = { "zero", "tell", "it", NULL }, *env[] = { NULL };
	char text[TOLD_BYTES], expected[1000];
	int directory_fd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC), program = open("copy", O_PATH | O_CLOEXEC);
	struct {
		const char *what;
		enum form form;
		int fd;
		const char *path;
		char *name;
	} forms[] = {
		{ "execve", BY_NAME, -1, "./copy", "copy" },
		{ "execve of a link", BY_NAME, -1, "./link", "link" },
		{ "execve behind vfork", BY_VFORK, -1, own, "copy" },
		{ "execveat", BY_DIRECTORY, directory_fd, "copy", "copy" },
		{ "execveat from here", BY_DIRECTORY, AT_FDCWD, "copy", "copy" },
		{ "execveat from a descriptor", FROM_DESCRIPTOR, program, "", NULL },
	};
	for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
		char number[16];
		int status = told(text, forms[i].form, forms[i].fd, forms[i].path, 0, argv, env);
		expect_equal(forms[i].what, 3, status);
		/* Since 6.14 it is called as the file is, before as the descriptor. */
		snprintf(number, sizeof number, "%d", program);
		char *name = forms[i].name ? forms[i].name : strncmp(text, "copy ", 5) ? number : "copy";
		snprintf(expected, sizeof expected, "%s %s zero tell it", name, own);
		expect_told(forms[i].what, expected, text);
	}
	int saved = open("copy", O_RDONLY | O_CLOEXEC);
	unlink("copy");
	expect_equal("a program without a name", 3, told(text, FROM_DESCRIPTOR, saved, "", 0, argv, env));
	expect_equal("is told", 1, strstr(text, "(deleted)") != NULL);
	close(saved);
	copy_of_itself("copy");
	close(directory_fd), close(program);
}

/* In memory alone. */
static void from_a_memfd(void)
{
	char *argv[] = { "zero", "tell", NULL }, text[TOLD_BYTES], block[65536];
	int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), to = memfd_create("made", MFD_CLOEXEC);
	for (ssize_t n; (n = read(from, block, sizeof block)) > 0;)
		expect_equal("write to a memfd", n, write(to, block, n));
	close(from);
	char name[64];
	snprintf(name, sizeof name, "/proc/self/fd/%d", to);
	int readable = open(name, O_RDONLY | O_CLOEXEC);
	close(to);
	expect_equal("fexecve of a memfd", 2, told(text, FROM_DESCRIPTOR, readable, "", 0, argv, environ));
	expect_equal("is told", 1, strstr(text, " /memfd:made (deleted) zero tell") != NULL);
	close(readable);
}

static void interpreters(void)
{
	char *argv[] = { "zero", "one", NULL }, text[TOLD_BYTES], expected[1000];
	snprintf(expected, sizeof expected, "script %s %s by  way ./script one", own, own);
	expect_equal("a script", 4, told(text, BY_NAME, -1, "./script", 0, argv, environ));
	expect_told("a script", expected, text);
	snprintf(expected, sizeof expected, "nested %s %s by  way %s/script ./nested one", own, own, directory);
	expect_equal("a script of a script", 5, told(text, BY_NAME, -1, "./nested", 0, argv, environ));
	expect_told("a script of a script", expected, text);
	expect_equal("a script of the shell", 12, told(text, BY_NAME, -1, "./shell", 0, argv, environ));
	expect_told("a script of the shell", "./shell one 1\n", text);
	int fd = open("shell", O_RDONLY);
	snprintf(expected, sizeof expected, "/dev/fd/%d one 1\n", fd);
	expect_equal("a script from a descriptor", 12, told(text, FROM_DESCRIPTOR, fd, "", 0, argv, environ));
	expect_told("a script from a descriptor", expected, text);
	close(fd);
}

static void expect_error(const char *what, int error, int fd, const char *path, int flags, char **argv)
{
	expect_equal(what, -1, syscall(SYS_execveat, fd, path, argv, environ, flags));
	expect_equal(what, error, errno);
}

/* By this very process, which goes on. */
static void what_cannot_be_executed(void)
{
	char *argv[] = { "zero", NULL }, *many[] = { "zero", NULL, NULL };
	char over[600];
	int script = open("script", O_RDONLY | O_CLOEXEC), writer;
	snprintf(over, sizeof over, "%s/copy/below", directory);
	expect_error("an empty file", ENOEXEC, AT_FDCWD, "empty", 0, argv);
	expect_error("not executable", EACCES, AT_FDCWD, "closed", 0, argv);
	expect_error("no interpreter", ENOENT, AT_FDCWD, "lost", 0, argv);
	expect_error("below a program", ENOTDIR, AT_FDCWD, over, 0, argv);
	expect_error("a link that is not followed", ELOOP, AT_FDCWD, "link", AT_SYMLINK_NOFOLLOW, argv);
	expect_error("no name", ENOENT, AT_FDCWD, "", 0, argv);
	expect_error("no descriptor", EBADF, 999, "copy", 0, argv);
	expect_error("flags that are none", EINVAL, AT_FDCWD, "copy", 0x40000000, argv);
	expect_error("a script that is closed for its interpreter", ENOENT, script, "", AT_EMPTY_PATH, argv);
	expect_error("a bad address", EFAULT, AT_FDCWD, (char *)8, 0, argv);
	expect_error("bad arguments", EFAULT, AT_FDCWD, "copy", 0, (char **)8);
	close(script);
	size_t longest = 33 * 4096;
	many[1] = malloc(longest);
	memset(many[1], 'x', longest);
	many[1][longest - 1] = 0;
	expect_error("an argument that is too long", E2BIG, AT_FDCWD, "copy", 0, many);
	free(many[1]);
	writer = open("copy", O_WRONLY | O_CLOEXEC);
	expect_error("open for writing", ETXTBSY, AT_FDCWD, "copy", 0, argv);
	close(writer);
}

/* A megabyte of arguments. */
static void many_arguments(void)
{
	static char *argv[10001];
	char text[TOLD_BYTES];
	for (int i = 0; i < 10000; i++)
		argv[i] = "an argument of a hundred bytes, with some more behind it so that it takes all of these hundred bytes";
	argv[1] = "tell";
	expect_equal("many arguments", 10000 % 256, told(text, BY_NAME, -1, "./copy", 0, argv, environ));
}

static void step(void)
{
}

static void check(void)
{
	every_form();
	from_a_memfd();
	interpreters();
	what_cannot_be_executed();
	many_arguments();
}

static void clean_up(void)
{
	static const char *const names[] = { "copy", "script", "nested", "shell", "empty", "closed", "lost", "link" };
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		unlink(names[i]);
	rmdir(directory);
}
