/* ymm0-15 hold their values through a tight loop. */
#include "victim.h"
#include <cpuid.h>

static uint64_t in[64] __attribute__((aligned(32))), out[64] __attribute__((aligned(32)));
static uint64_t seed = 0x2545f4914f6cdd1d;

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	if (!__builtin_cpu_supports("avx2"))
		skip("cpu lacks avx2");
}

#define LOAD(n) "vmovdqa " #n "*32(%1),%%ymm" #n "\n"
#define STORE(n) "vmovdqa %%ymm" #n "," #n "*32(%2)\n"
#define ALL(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)

static void step(void)
{
	unsigned long rounds = 20000000;
	for (int i = 0; i < 64; i++)
		in[i] = next_random(&seed);
	__asm__ volatile(ALL(LOAD) "1: dec %0\njnz 1b\n" ALL(STORE) "vzeroupper\n"
			 : "+r"(rounds)
			 : "r"(in), "r"(out)
			 : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
			   "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	for (int i = 0; i < 64; i++)
		expect_equal("ymm quarter", in[i], out[i]);
}

static void check(void)
{
	step();
}
