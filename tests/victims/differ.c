/*
 * Makes each forwarded call with good, odd and bad arguments and says what came of it:
 *
 *   run DIRECTORY [root]   one line for each case, "<call>#<n> <case> <result> <buffer>=<hash>...",
 *                          where a buffer changed; then "DONE"
 *
 * Run where nothing was moved and run as a guest, it is to say the same.
 */
#define VICTIM_COMMAND
#define VICTIM_INPUT_TIMEOUT_MS -1
#include "victim.h"
#include "cases.h"

#define MOST_ANSWER_BYTES (1 << 22)
/* What waits nevertheless ends in EINTR. */
#define PATIENCE_S 2

static const struct {
	const char *name;
	uint64_t value;
} odd[] = {
	{ "0", 0 }, { "1", 1 }, { "16", 16 }, { "4096", 4096 }, { "0x3000", 0x3000 },
	{ "int_max", 0x7fffffff }, { "int_min", 0x80000000 }, { "uint_max", 0xffffffff },
	{ "tera", 1UL << 40 }, { "long_max", MINUS_1 >> 1 }, { "long_min", 1UL << 63 },
	{ "-1", MINUS_1 }, { "-100", HERE }, { "unmapped", UNMAPPED }, { "read-only", READ_ONLY },
	{ "edge", END(EDGE) - 3 }, { "kernel", 0xffff888000000000 }, { "top", 0x7ffffffff000 - 16 },
};

#define ODD (sizeof odd / sizeof *odd)
/* One more than the value, the value with bits above an int's, a buffer that ends with its page. */
#define DERIVED 3

static char answer_text[MOST_ANSWER_BYTES];
static size_t answer_length;
static unsigned char before[BUFFERS][BUFFER_BYTES];

static void on_alarm(int number)
{
	(void)number;
}

static void setup(int argc, char **argv)
{
	(void)argc, (void)argv;
	/* A session of its own: signals to process 0 reach nobody else. */
	setsid();
	for (int number = 1; number < 32; number++)
		if (number != SIGSEGV && number != SIGBUS && number != SIGCHLD)
			signal(number, SIG_IGN);
	struct sigaction action = { .sa_handler = on_alarm };
	sigaction(SIGALRM, &action, NULL);
	snprintf(queue_name, sizeof queue_name, "/tcmi-differ-%d", getuid());
	map_buffers();
}

static void step(void)
{
}

static void check(void)
{
}

static void note(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	size_t room = sizeof answer_text - answer_length;
	answer_length += vsnprintf(answer_text + answer_length, room, format, args);
	va_end(args);
	need(answer_length < sizeof answer_text, "room for what it says");
}

static void send_answer(void)
{
	for (size_t done = 0; done < answer_length;) {
		ssize_t n = write(KEPT_OUT, answer_text + done, answer_length - done);
		need(n > 0 || errno == EINTR, "write");
		done += n > 0 ? n : 0;
	}
	answer_length = 0;
}

static uint64_t known(uint64_t value)
{
	switch (value) {
	case SELF:
		return getpid();
	case SEMAPHORES:
		return semaphores;
	case MESSAGES:
		return messages;
	case DEVICE:
		return device;
	case SEGMENT:
		return segment;
	default:
		return value;
	}
}

/* The `n`th value in place of `args[i]`; its name, or NULL if there is none. */
static const char *replace(const struct call *call, uint64_t *args, int i, unsigned n)
{
	if (n < ODD) {
		args[i] = odd[n].value;
		return odd[n].name;
	}
	switch (n - ODD) {
	case 0:
		/* Beside one of its own ids may stand another's. */
		if (args[i] != call->args[i])
			return NULL;
		args[i]++;
		return "+1";
	case 1:
		if (args[i] >> 32)
			return NULL;
		args[i] |= 0xabcdUL << 32;
		return "+high";
	default:
		for (const struct fill *fill = call->fills; fill < call->fills + 4; fill++)
			if (fill->size && fill->at == args[i]) {
				args[i] = END(fill->at) - fill->size;
				memcpy((void *)args[i], fill->bytes, fill->size);
				return "flush";
			}
		return NULL;
	}
}

static void fill_buffers(const struct call *call)
{
	for (int i = 0; i < BUFFERS; i++)
		memset((void *)BUFFER(i), 0xa1 + i, BUFFER_BYTES);
	for (const struct fill *fill = call->fills; fill < call->fills + 4; fill++)
		memcpy((void *)fill->at, fill->bytes, fill->size);
}

static void steady(const char *name, const uint64_t *args)
{
	for (size_t i = 0; i < sizeof unsteady / sizeof *unsteady; i++) {
		uint64_t at = args[unsteady[i].argument] + unsteady[i].at;
		for (int b = 0; !strcmp(unsteady[i].name, name) && b < BUFFERS; b++)
			for (size_t k = 0; k < unsteady[i].size; k++)
				if (at + k >= BUFFER(b) && at + k < END(BUFFER(b)))
					*(char *)(at + k) = before[b][at + k - BUFFER(b)];
	}
}

static uint64_t hash(const unsigned char *bytes, size_t length)
{
	uint64_t h = 0xcbf29ce484222325;
	for (size_t i = 0; i < length; i++)
		h = (h ^ bytes[i]) * 0x100000001b3;
	return h;
}

static void note_result(const struct call *call, long result, int error)
{
	if (result == -1)
		note(" -%d", error);
	else if (call->flags & VARIES)
		note(" varies");
	else if (result == getpid())
		note(" self");
	else
		note(" %ld", result);
}

/* Of a buffer that changed the hash, and its beginning: to be read by people. */
static void note_buffers(void)
{
	for (int i = 0; i < BUFFERS; i++) {
		const unsigned char *now = (void *)BUFFER(i);
		if (!memcmp(now, before[i], BUFFER_BYTES))
			continue;
		note(" %c=%016lx/", 'A' + i, hash(now, BUFFER_BYTES));
		size_t first = 0, shown = 0;
		while (now[first] == before[i][first])
			first++;
		for (; shown < 16 && first + shown < BUFFER_BYTES; shown++)
			note("%02x", now[first + shown]);
	}
}

/* Of what a case has made, all that make_world() does not find. */
static void undo(long number, long made)
{
	if (number == SYS_msgget)
		msgctl(made, IPC_RMID, NULL);
	if (number == SYS_semget)
		semctl(made, 0, IPC_RMID);
	if (number == SYS_shmget)
		shmctl(made, IPC_RMID, NULL);
	if (number == SYS_shmat)
		need(shmdt((void *)made) == 0, "shmdt");
}

/* `i` < 0: as it stands. 0: there is no such case. */
static int try(const struct call *call, int index, int i, unsigned n)
{
	uint64_t args[6];
	const char *name = "good";
	if (call->flags & REFILL)
		refill(call->args[0]);
	fill_buffers(call);
	for (int k = 0; k < 6; k++)
		args[k] = known(call->args[k]);
	if (i >= 0 && !(name = replace(call, args, i, n)))
		return 0;
	for (int b = 0; b < BUFFERS; b++)
		memcpy(before[b], (void *)BUFFER(b), BUFFER_BYTES);
	alarm(PATIENCE_S);
	errno = 0;
	long result = syscall(call->number, args[0], args[1], args[2], args[3], args[4], args[5]);
	int error = errno;
	alarm(0);
	if (result >= 0)
		undo(call->number, result);
	steady(call->name, args);
	if (i < 0)
		note("%s#%d good", call->name, index);
	else
		note("%s#%d arg%d=%s", call->name, index, i, name);
	note_result(call, result, error);
	/* What a call that faults has written before, kernels do not say. */
	if (result != -1 || error != EFAULT)
		note_buffers();
	note("\n");
	return 1;
}

static void try_all(const struct call *call, int index)
{
	make_world();
	try(call, index, -1, 0);
	for (int i = 0; i < call->count; i++)
		for (unsigned n = 0; !(call->keep & KEEP(i)) && n < ODD + DERIVED; n++)
			try(call, index, i, n);
	unmake_world();
	send_answer();
}

static void command(const char *line)
{
	char directory[200], who[8] = "";
	if (sscanf(line, "run %199s %7s", directory, who) < 1)
		return;
	must(dup2(0, KEPT_IN) >= 0 && dup2(1, KEPT_OUT) >= 0, "dup2");
	put(open(directory, O_RDONLY | O_DIRECTORY), KEPT_DIRECTORY);
	int index = 0;
	for (const struct call *call = calls; call < calls + sizeof calls / sizeof *calls; call++) {
		index = call > calls && !strcmp(call->name, call[-1].name) ? index + 1 : 0;
		if (!strcmp(who, "root") && call->flags & USER)
			continue;
		try_all(call, index);
	}
	dup2(KEPT_IN, 0), dup2(KEPT_OUT, 1);
	say("DONE\n");
}
