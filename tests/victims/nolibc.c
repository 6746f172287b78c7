/* No C library: no thread-local storage, no rseq, no robust list, nothing but system calls. */
typedef unsigned long word;

static word call(word number, word a, word b, word c)
{
	word result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

enum { SYS_read = 0, SYS_write = 1, SYS_poll = 7, SYS_getpid = 39, SYS_exit_group = 231 };

static word pattern[8192];
static word rounds;

static word mixed(word i)
{
	return (i + rounds) * 0x9e3779b97f4a7c15UL;
}

static int intact(void)
{
	for (word i = 0; i < 8192; i++)
		if (pattern[i] != mixed(i))
			return 0;
	return 1;
}

static void refill(void)
{
	rounds++;
	for (word i = 0; i < 8192; i++)
		pattern[i] = mixed(i);
}

static void say_ready(void)
{
	char line[32] = "READY ";
	char digits[20];
	word pid = call(SYS_getpid, 0, 0, 0), count = 0, length = 6;
	for (; pid; pid /= 10)
		digits[count++] = '0' + pid % 10;
	while (count)
		line[length++] = digits[--count];
	line[length++] = '\n';
	call(SYS_write, 1, (word)line, length);
}

__attribute__((force_align_arg_pointer)) void _start(void)
{
	int broken = 0;
	refill();
	say_ready();
	for (;;) {
		struct {
			int fd;
			short events, seen;
		} in = { 0, 1, 0 };
		char line[64];
		broken |= !intact();
		refill();
		if (call(SYS_poll, (word)&in, 1, 0) != 1)
			continue;
		long n = call(SYS_read, 0, (word)line, sizeof line);
		if (n <= 0)
			call(SYS_exit_group, 98, 0, 0);
		if (line[0] == 'c') {
			if (broken || !intact())
				call(SYS_write, 1, (word)"FAIL pattern: 1 0\n", 18);
			else
				call(SYS_write, 1, (word)"OK\n", 3);
		} else if (line[0] == 'e') {
			word status = 0;
			for (long i = 4; i < n && line[i] >= '0' && line[i] <= '9'; i++)
				status = status * 10 + (line[i] - '0');
			call(SYS_exit_group, status, 0, 0);
		}
	}
}
