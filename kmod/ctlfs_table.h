/* SPDX-License-Identifier: GPL-2.0-only */
/* Made from ctlfs/src/tree.rs by `cargo xtask kmod-table`. */

#define CTL_TABLE_HASH 0xe3accc0524bca4dfULL

static const struct ctl_entry ctl_table[] = {
	/*  0  */
	{ "", S_IFDIR | 0555, 0, 0 },
	/*  1 node */
	{ "node", S_IFDIR | 0555, 0, 0 },
	/*  2 node/id */
	{ "id", S_IFREG | 0444, 1, 0 },
	/*  3 node/name */
	{ "name", S_IFREG | 0444, 1, 0 },
	/*  4 node/version */
	{ "version", S_IFREG | 0444, 1, 0 },
	/*  5 node/features */
	{ "features", S_IFREG | 0444, 1, 0 },
	/*  6 ccn */
	{ "ccn", S_IFDIR | 0555, 0, 0 },
	/*  7 ccn/listen */
	{ "listen", S_IFREG | 0200, 6, 0 },
	/*  8 ccn/listening-on */
	{ "listening-on", S_IFDIR | 0555, 6, 0 },
	/*  9 ccn/listening-on/{N} */
	{ NULL, S_IFDIR | 0555, 8, 0 },
	/* 10 ccn/listening-on/{N}/sockname */
	{ "sockname", S_IFREG | 0444, 9, 0 },
	/* 11 ccn/listening-on/{N}/stop */
	{ "stop", S_IFREG | 0200, 9, 0 },
	/* 12 ccn/trust */
	{ "trust", S_IFREG | 0600, 6, 0 },
	/* 13 ccn/nodes */
	{ "nodes", S_IFDIR | 0555, 6, 0 },
	/* 14 ccn/nodes/count */
	{ "count", S_IFREG | 0444, 13, 0 },
	/* 15 ccn/nodes/{N} */
	{ NULL, S_IFDIR | 0555, 13, 0 },
	/* 16 ccn/nodes/{N}/id */
	{ "id", S_IFREG | 0444, 15, 0 },
	/* 17 ccn/nodes/{N}/name */
	{ "name", S_IFREG | 0444, 15, 0 },
	/* 18 ccn/nodes/{N}/state */
	{ "state", S_IFREG | 0444, 15, 0 },
	/* 19 ccn/nodes/{N}/address */
	{ "address", S_IFREG | 0444, 15, 0 },
	/* 20 ccn/nodes/{N}/load */
	{ "load", S_IFREG | 0444, 15, 0 },
	/* 21 ccn/nodes/{N}/features */
	{ "features", S_IFREG | 0444, 15, 0 },
	/* 22 ccn/nodes/{N}/stop */
	{ "stop", S_IFREG | 0200, 15, 0 },
	/* 23 ccn/nodes/{N}/kill */
	{ "kill", S_IFREG | 0200, 15, 0 },
	/* 24 ccn/nodes/{NAME} */
	{ NULL, S_IFLNK | 0777, 13, 0 },
	/* 25 ccn/mig */
	{ "mig", S_IFDIR | 0555, 6, 0 },
	/* 26 ccn/mig/emigrate-ppm-p */
	{ "emigrate-ppm-p", S_IFREG | 0222, 25, CTL_PID },
	/* 27 ccn/mig/emigrate-npm */
	{ "emigrate-npm", S_IFREG | 0666, 25, CTL_PID },
	/* 28 ccn/mig/migrate-home */
	{ "migrate-home", S_IFREG | 0222, 25, CTL_PID },
	/* 29 ccn/mig/checkpoint */
	{ "checkpoint", S_IFREG | 0222, 25, CTL_PID },
	/* 30 ccn/mig/explain */
	{ "explain", S_IFREG | 0666, 25, CTL_PID | CTL_ANSWERS },
	/* 31 ccn/mig/migproc */
	{ "migproc", S_IFDIR | 0555, 25, 0 },
	/* 32 ccn/mig/migproc/{PID} */
	{ NULL, S_IFDIR | 0555, 31, 0 },
	/* 33 ccn/mig/migproc/{PID}/node */
	{ "node", S_IFLNK | 0777, 32, 0 },
	/* 34 ccn/mig/migproc/{PID}/remote-pid */
	{ "remote-pid", S_IFREG | 0444, 32, 0 },
	/* 35 ccn/mig/migproc/{PID}/state */
	{ "state", S_IFREG | 0444, 32, 0 },
	/* 36 ccn/mig/migproc/{PID}/stats */
	{ "stats", S_IFREG | 0444, 32, 0 },
	/* 37 ccn/mig/migproc/{PID}/last-error */
	{ "last-error", S_IFREG | 0444, 32, 0 },
	/* 38 pen */
	{ "pen", S_IFDIR | 0555, 0, 0 },
	/* 39 pen/connect */
	{ "connect", S_IFREG | 0200, 38, 0 },
	/* 40 pen/nodes */
	{ "nodes", S_IFDIR | 0555, 38, 0 },
	/* 41 pen/nodes/count */
	{ "count", S_IFREG | 0444, 40, 0 },
	/* 42 pen/nodes/{N} */
	{ NULL, S_IFDIR | 0555, 40, 0 },
	/* 43 pen/nodes/{N}/id */
	{ "id", S_IFREG | 0444, 42, 0 },
	/* 44 pen/nodes/{N}/name */
	{ "name", S_IFREG | 0444, 42, 0 },
	/* 45 pen/nodes/{N}/state */
	{ "state", S_IFREG | 0444, 42, 0 },
	/* 46 pen/nodes/{N}/address */
	{ "address", S_IFREG | 0444, 42, 0 },
	/* 47 pen/nodes/{N}/load */
	{ "load", S_IFREG | 0444, 42, 0 },
	/* 48 pen/nodes/{N}/features */
	{ "features", S_IFREG | 0444, 42, 0 },
	/* 49 pen/nodes/{N}/stop */
	{ "stop", S_IFREG | 0200, 42, 0 },
	/* 50 pen/nodes/{N}/kill */
	{ "kill", S_IFREG | 0200, 42, 0 },
	/* 51 pen/nodes/{N}/migrate-home-all */
	{ "migrate-home-all", S_IFREG | 0200, 42, 0 },
	/* 52 pen/nodes/{NAME} */
	{ NULL, S_IFLNK | 0777, 40, 0 },
	/* 53 pen/mig */
	{ "mig", S_IFDIR | 0555, 38, 0 },
	/* 54 pen/mig/migrate-home */
	{ "migrate-home", S_IFREG | 0200, 53, 0 },
	/* 55 pen/mig/migproc */
	{ "migproc", S_IFDIR | 0555, 53, 0 },
	/* 56 pen/mig/migproc/{PID} */
	{ NULL, S_IFDIR | 0555, 55, 0 },
	/* 57 pen/mig/migproc/{PID}/node */
	{ "node", S_IFLNK | 0777, 56, 0 },
	/* 58 pen/mig/migproc/{PID}/remote-pid */
	{ "remote-pid", S_IFREG | 0444, 56, 0 },
	/* 59 pen/mig/migproc/{PID}/state */
	{ "state", S_IFREG | 0444, 56, 0 },
	/* 60 pen/mig/migproc/{PID}/stats */
	{ "stats", S_IFREG | 0444, 56, 0 },
	/* 61 pen/mig/migproc/{PID}/last-error */
	{ "last-error", S_IFREG | 0444, 56, 0 },
};
