/* Every general register and xmm0-15 hold their values through a tight loop. */
#include "victim.h"

/* Not static: hold() reaches them by name. */
uint64_t general_in[14], general_out[14];
uint64_t wide_in[32] __attribute__((aligned(16))), wide_out[32] __attribute__((aligned(16)));
static uint64_t seed = 0x9e3779b97f4a7c15;

/* The loop's counter lives on the stack: no register is left to hold it. */
void hold(void);
__asm__(".text\n.globl hold\n.type hold,@function\nhold:\n"
	"push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"
	"pushq $20000000\n"
	"lea wide_in(%rip), %rax\n"
	"movaps (%rax),%xmm0\nmovaps 16(%rax),%xmm1\nmovaps 32(%rax),%xmm2\nmovaps 48(%rax),%xmm3\n"
	"movaps 64(%rax),%xmm4\nmovaps 80(%rax),%xmm5\nmovaps 96(%rax),%xmm6\nmovaps 112(%rax),%xmm7\n"
	"movaps 128(%rax),%xmm8\nmovaps 144(%rax),%xmm9\nmovaps 160(%rax),%xmm10\nmovaps 176(%rax),%xmm11\n"
	"movaps 192(%rax),%xmm12\nmovaps 208(%rax),%xmm13\nmovaps 224(%rax),%xmm14\nmovaps 240(%rax),%xmm15\n"
	"lea general_in(%rip), %rax\n"
	"mov 8(%rax),%rbx\nmov 16(%rax),%rcx\nmov 24(%rax),%rdx\nmov 32(%rax),%rsi\nmov 40(%rax),%rdi\n"
	"mov 48(%rax),%rbp\nmov 56(%rax),%r8\nmov 64(%rax),%r9\nmov 72(%rax),%r10\nmov 80(%rax),%r11\n"
	"mov 88(%rax),%r12\nmov 96(%rax),%r13\nmov 104(%rax),%r14\nmov (%rax),%r15\nmov %r15,%rax\n"
	"1: decq (%rsp)\njnz 1b\n"
	"cmp %rax,%r15\nje 2f\nxor %r15,%r15\n2:\n"
	"mov %rbx,general_out+8(%rip)\nmov %rcx,general_out+16(%rip)\nmov %rdx,general_out+24(%rip)\n"
	"mov %rsi,general_out+32(%rip)\nmov %rdi,general_out+40(%rip)\nmov %rbp,general_out+48(%rip)\n"
	"mov %r8,general_out+56(%rip)\nmov %r9,general_out+64(%rip)\nmov %r10,general_out+72(%rip)\n"
	"mov %r11,general_out+80(%rip)\nmov %r12,general_out+88(%rip)\nmov %r13,general_out+96(%rip)\n"
	"mov %r14,general_out+104(%rip)\nmov %r15,general_out(%rip)\n"
	"lea wide_out(%rip), %rax\n"
	"movaps %xmm0,(%rax)\nmovaps %xmm1,16(%rax)\nmovaps %xmm2,32(%rax)\nmovaps %xmm3,48(%rax)\n"
	"movaps %xmm4,64(%rax)\nmovaps %xmm5,80(%rax)\nmovaps %xmm6,96(%rax)\nmovaps %xmm7,112(%rax)\n"
	"movaps %xmm8,128(%rax)\nmovaps %xmm9,144(%rax)\nmovaps %xmm10,160(%rax)\nmovaps %xmm11,176(%rax)\n"
	"movaps %xmm12,192(%rax)\nmovaps %xmm13,208(%rax)\nmovaps %xmm14,224(%rax)\nmovaps %xmm15,240(%rax)\n"
	"add $8,%rsp\n"
	"pop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n.size hold,.-hold\n");

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
}

static void step(void)
{
	for (int i = 0; i < 14; i++)
		general_in[i] = next_random(&seed);
	for (int i = 0; i < 32; i++)
		wide_in[i] = next_random(&seed);
	hold();
	for (int i = 0; i < 14; i++)
		expect_equal("general register", general_in[i], general_out[i]);
	for (int i = 0; i < 32; i++)
		expect_equal("xmm half", wide_in[i], wide_out[i]);
}

static void check(void)
{
	step();
}
