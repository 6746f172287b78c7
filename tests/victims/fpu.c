/* x87 stack and control word, MXCSR: the state that only XSAVE's legacy part holds. */
#include "victim.h"

#define CONTROL_WORD 0x0c7f /* truncate, double precision */
#define MXCSR_TRUNCATE_AND_FLUSH 0xffc0u

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	unsigned short control = CONTROL_WORD;
	unsigned mxcsr = MXCSR_TRUNCATE_AND_FLUSH;
	__asm__ volatile("fldcw %0\nldmxcsr %1" ::"m"(control), "m"(mxcsr));
}

static void step(void)
{
	long long first, second, third;
	unsigned long rounds = 20000000;
	__asm__ volatile("fldpi\nfldl2e\nfld1\n"
			 "1: dec %3\njnz 1b\n"
			 "fistpll %0\n"
			 "fmul %%st(1),%%st\nfistpll %1\n"
			 "fistpll %2\n"
			 : "=m"(first), "=m"(second), "=m"(third), "+r"(rounds)
			 :
			 : "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", "cc");
	expect_equal("x87 one", 1, first);
	expect_equal("x87 log2(e) * pi", 4, second);
	expect_equal("x87 pi", 3, third);
}

static void check(void)
{
	unsigned short control;
	unsigned mxcsr;
	__asm__ volatile("fnstcw %0\nstmxcsr %1" : "=m"(control), "=m"(mxcsr));
	expect_equal("x87 control word", CONTROL_WORD, control);
	expect_equal("mxcsr", MXCSR_TRUNCATE_AND_FLUSH, mxcsr & ~0x3fu);
	step();
}
