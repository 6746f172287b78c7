/* zmm0-31 and the mask registers k0-7 hold their values through a tight loop. */
#include "victim.h"

static uint64_t in[256] __attribute__((aligned(64))), out[256] __attribute__((aligned(64)));
static uint64_t mask_in[8], mask_out[8];
static uint64_t seed = 0x9e3779b97f4a7c15;

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw"))
		skip("cpu lacks avx512f or avx512bw");
}

#define LOAD(n) "vmovdqa64 " #n "*64(%1),%%zmm" #n "\n"
#define STORE(n) "vmovdqa64 %%zmm" #n "," #n "*64(%2)\n"
#define LOAD_MASK(n) "kmovq " #n "*8(%3),%%k" #n "\n"
#define STORE_MASK(n) "kmovq %%k" #n "," #n "*8(%4)\n"
#define EIGHT(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7)
#define ALL(op)                                                                                        \
	EIGHT(op) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15) op(16) op(17) op(18) op(19)    \
	op(20) op(21) op(22) op(23) op(24) op(25) op(26) op(27) op(28) op(29) op(30) op(31)

__attribute__((target("avx512f,avx512bw"))) static void hold(void)
{
	unsigned long rounds = 20000000;
	__asm__ volatile(ALL(LOAD) EIGHT(LOAD_MASK) "1: dec %0\njnz 1b\n" ALL(STORE) EIGHT(STORE_MASK) "vzeroupper\n"
			 : "+r"(rounds)
			 : "r"(in), "r"(out), "r"(mask_in), "r"(mask_out)
			 : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
			   "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18",
			   "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28",
			   "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7");
}

static void step(void)
{
	for (int i = 0; i < 256; i++)
		in[i] = next_random(&seed);
	for (int i = 0; i < 8; i++)
		mask_in[i] = next_random(&seed);
	hold();
	for (int i = 0; i < 256; i++)
		expect_equal("zmm eighth", in[i], out[i]);
	for (int i = 0; i < 8; i++)
		expect_equal("mask register", mask_in[i], mask_out[i]);
}

static void check(void)
{
	step();
}
