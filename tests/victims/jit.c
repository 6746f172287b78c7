/* Generated code: written, made executable, called, and patched again after the move. */
#include "victim.h"

static unsigned char *code, *writable_code;
static int value;

static void emit(unsigned char *at, int result)
{
	at[0] = 0xb8; /* mov eax, imm32 */
	memcpy(at + 1, &result, 4);
	at[5] = 0xc3; /* ret */
}

static int call(unsigned char *at)
{
	return ((int (*)(void))at)();
}

__attribute__((noinline, aligned(4096))) static int patched(void)
{
	__asm__ volatile(".byte 0xb8, 7, 0, 0, 0, 0xc3" ::: "eax");
	return 0;
}

static void patch_text(int result)
{
	char *page = (char *)((uintptr_t)patched & ~4095UL);
	must(mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) == 0, "mprotect text");
	unsigned char *at = (unsigned char *)patched;
	while (at[0] != 0xb8 || at[5] != 0xc3)
		at++;
	memcpy(at + 1, &result, 4);
	must(mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0, "mprotect text");
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	writable_code =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(code != MAP_FAILED && writable_code != MAP_FAILED, "mmap");
	emit(code, 41);
	must(mprotect(code, 4096, PROT_READ | PROT_EXEC) == 0, "mprotect");
	patch_text(13);
}

static void step(void)
{
	int (*volatile through_pointer)(void) = patched;
	value++;
	emit(writable_code, value);
	expect_equal("written code", value, call(writable_code));
	expect_equal("executable page", 41, call(code));
	expect_equal("patched text", 13, through_pointer());
}

static void check(void)
{
	step();
	must(mprotect(code, 4096, PROT_READ | PROT_WRITE) == 0, "mprotect");
	emit(code, 41);
	must(mprotect(code, 4096, PROT_READ | PROT_EXEC) == 0, "mprotect");
	expect_equal("executable page again", 41, call(code));
}
