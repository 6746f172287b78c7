// SPDX-License-Identifier: GPL-2.0-only
/* Tracepoints that no symbol is exported for. */

#include <linux/string.h>
#include <linux/tracepoint.h>

#include "tcmi.h"

struct search {
	struct tcmi_probe *probes;
	size_t count;
};

static void compare(struct tracepoint *tracepoint, void *arg)
{
	struct search *search = arg;
	size_t i;

	for (i = 0; i < search->count; i++) {
		if (!strcmp(tracepoint->name, search->probes[i].name))
			search->probes[i].tracepoint = tracepoint;
	}
}

int tcmi_find_tracepoints(struct tcmi_probe *probes, size_t count)
{
	struct search search = { .probes = probes, .count = count };
	size_t i;

	for_each_kernel_tracepoint(compare, &search);
	for (i = 0; i < count; i++) {
		if (!probes[i].tracepoint) {
			pr_err("tcmi: this kernel has no tracepoint %s\n", probes[i].name);
			return -ENOENT;
		}
	}
	return 0;
}

/* All of them or none. */
int tcmi_probe(struct tcmi_probe *probes, size_t count)
{
	size_t i;
	int err;

	for (i = 0; i < count; i++) {
		err = tracepoint_probe_register(probes[i].tracepoint, probes[i].function, NULL);
		if (err) {
			tcmi_unprobe(probes, i);
			return err;
		}
	}
	return 0;
}

/* A probe may still be running afterwards, until the module's exit waits for it. */
void tcmi_unprobe(struct tcmi_probe *probes, size_t count)
{
	while (count--)
		tracepoint_probe_unregister(probes[count].tracepoint, probes[count].function,
					    NULL);
}
