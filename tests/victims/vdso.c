/* Entry points of the vDSO found at start are called after the move, and agree with the kernel. */
#include "victim.h"
#include <elf.h>
#include <sys/auxv.h>
#include <sys/time.h>

static int (*vdso_clock_gettime)(clockid_t, struct timespec *);
static int (*vdso_gettimeofday)(struct timeval *, void *);
static time_t (*vdso_time)(time_t *);
static long (*vdso_getcpu)(unsigned *, unsigned *, void *);
static unsigned long header_at;
static unsigned long auxv_at_start[64];

static void *symbol(const char *name)
{
	char *base = (char *)header_at;
	Elf64_Ehdr *elf = (void *)base;
	Elf64_Phdr *segment = (void *)(base + elf->e_phoff);
	Elf64_Dyn *dynamic = NULL;
	long bias = 0;
	for (int i = 0; i < elf->e_phnum; i++) {
		if (segment[i].p_type == PT_LOAD && !bias)
			bias = header_at + segment[i].p_offset - segment[i].p_vaddr;
		if (segment[i].p_type == PT_DYNAMIC)
			dynamic = (void *)(base + segment[i].p_offset);
	}
	Elf64_Sym *symbols = NULL;
	char *strings = NULL;
	for (; dynamic->d_tag != DT_NULL; dynamic++) {
		if (dynamic->d_tag == DT_SYMTAB)
			symbols = (void *)(dynamic->d_un.d_ptr + bias);
		if (dynamic->d_tag == DT_STRTAB)
			strings = (void *)(dynamic->d_un.d_ptr + bias);
	}
	/* The string table follows the symbol table in every vDSO so far. */
	for (; (char *)symbols < strings; symbols++)
		if (!strcmp(strings + symbols->st_name, name))
			return (void *)(symbols->st_value + bias);
	return NULL;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	header_at = getauxval(AT_SYSINFO_EHDR);
	if (!header_at)
		skip("kernel gives no vDSO");
	vdso_clock_gettime = symbol("__vdso_clock_gettime");
	vdso_gettimeofday = symbol("__vdso_gettimeofday");
	vdso_time = symbol("__vdso_time");
	vdso_getcpu = symbol("__vdso_getcpu");
	must(vdso_clock_gettime && vdso_gettimeofday && vdso_time && vdso_getcpu, "vDSO symbols");
	for (int i = 0; i < 64; i++)
		auxv_at_start[i] = getauxval(i);
}

static void step(void)
{
	struct timespec fast, slow;
	expect_equal("vDSO clock_gettime", 0, vdso_clock_gettime(CLOCK_REALTIME, &fast));
	syscall(SYS_clock_gettime, CLOCK_REALTIME, &slow);
	expect_range("seconds", fast.tv_sec, fast.tv_sec + 30, slow.tv_sec);
	struct timeval day;
	expect_equal("vDSO gettimeofday", 0, vdso_gettimeofday(&day, NULL));
	expect_range("seconds of the day", slow.tv_sec, slow.tv_sec + 30, day.tv_sec);
	expect_range("vDSO time", day.tv_sec - 1, day.tv_sec + 30, vdso_time(NULL));
	unsigned cpu = ~0u;
	expect_equal("vDSO getcpu", 0, vdso_getcpu(&cpu, NULL, NULL));
	expect_range("cpu", 0, sysconf(_SC_NPROCESSORS_CONF) - 1, cpu);
}

static void check(void)
{
	for (int i = 0; i < 64; i++)
		expect_equal("auxiliary vector", auxv_at_start[i], getauxval(i));
	step();
}
