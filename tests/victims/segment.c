/*
 * A parent and its children (first argument: how many) take turns in memory that they share, by a
 * mutex and a condition of several processes; each counts for itself, too. With a second argument it
 * is System V memory, and READY tells its number: "destroyed" or "lasting"; or it has huge pages:
 * "huge". "unmap" and "move" are of a part of it, in the parent alone.
 */
#define VICTIM_COMMAND
#include "victim.h"
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>

#define CHILDREN_MAX 16
#define MORE_MAX 16
#define PAGES 64
#define PAGE 4096
/* Behind what they take turns in. */
#define MORE_PAGES 4

struct shared {
	pthread_mutex_t lock;
	pthread_cond_t turn;
	int next;
	unsigned long sum;
	unsigned long turns[CHILDREN_MAX + 1];
	unsigned long extra;
	_Atomic unsigned long counted;
	_Atomic unsigned long beats[MORE_MAX];
};

static struct shared *shared;
static volatile unsigned char *pages;
static int members = 1;
static unsigned long mine;
static const char *system_v;
static int is_huge;
static int segment = -1;
static int more;

/* What the one before has written is there, and what one writes stays. */
static void take_turn(int me)
{
	pthread_mutex_lock(&shared->lock);
	while (shared->next != me)
		pthread_cond_wait(&shared->turn, &shared->lock);
	for (int page = 0; page < PAGES; page++)
		expect_equal("page", (shared->sum + page) & 255, pages[page * PAGE + page]);
	expect_equal("own turns", mine, shared->turns[me]);
	shared->turns[me] = ++mine;
	shared->sum++;
	for (int page = 0; page < PAGES; page++)
		pages[page * PAGE + page] = shared->sum + page;
	shared->next = (me + 1) % members;
	pthread_cond_broadcast(&shared->turn);
	pthread_mutex_unlock(&shared->lock);
	atomic_fetch_add(&shared->counted, 1);
}

static void *map(size_t bytes)
{
	if (system_v && segment < 0) {
		segment = shmget(IPC_PRIVATE, bytes, 0600);
		must(segment >= 0, "shmget");
		void *attached = shmat(segment, NULL, 0);
		must(attached != (void *)-1, "shmat");
		if (!strcmp(system_v, "destroyed"))
			shmctl(segment, IPC_RMID, NULL);
		snprintf(ready_word, sizeof ready_word, "%d", segment);
		return attached;
	}
	int flags = MAP_SHARED | MAP_ANONYMOUS | (is_huge ? MAP_HUGETLB : 0);
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
	must(p != MAP_FAILED, "mmap");
	return p;
}

static void setup(int argc, char **argv)
{
	int children = argc > 1 ? atoi(argv[1]) : 3;
	must(children >= 0 && children <= CHILDREN_MAX, "so many children");
	members = children + 1;
	is_huge = argc > 2 && !strcmp(argv[2], "huge");
	system_v = argc > 2 && !is_huge ? argv[2] : NULL;
	shared = map(sizeof *shared);
	pages = map((PAGES + MORE_PAGES) * PAGE);
	pthread_mutexattr_t lock;
	pthread_condattr_t turn;
	pthread_mutexattr_init(&lock);
	pthread_condattr_init(&turn);
	pthread_mutexattr_setpshared(&lock, PTHREAD_PROCESS_SHARED);
	pthread_condattr_setpshared(&turn, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&shared->lock, &lock);
	pthread_cond_init(&shared->turn, &turn);
	for (int page = 0; page < PAGES; page++)
		pages[page * PAGE + page] = page;
	pid_t parent = getpid();
	for (int me = 1; me < members; me++) {
		pid_t pid = fork();
		must(pid >= 0, "fork");
		if (pid == 0) {
			close(0);
			close(1);
			/* It may wait for a turn that nobody gives it any more. */
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			while (getppid() == parent && !first_failure[0])
				take_turn(me);
			_exit(first_failure[0] ? SETUP_FAILED_STATUS : 0);
		}
	}
}

static void step(void)
{
	take_turn(0);
}

/* One more for a moment. */
static void attach_another(void)
{
	int id = shmget(IPC_PRIVATE, 3 * PAGE, 0600);
	unsigned char *more = shmat(id, NULL, 0);
	must(more != (void *)-1, "shmat of another");
	shmctl(id, IPC_RMID, NULL);
	expect_equal("new", 0, more[2 * PAGE]);
	more[2 * PAGE] = 7;
	expect_equal("stored", 7, more[2 * PAGE]);
	expect_equal("shmdt", 0, shmdt(more));
	expect_equal("shmdt of nothing", -1, shmdt(more));
	expect_equal("errno of nothing", EINVAL, errno);
}

static void move_pages_away(void)
{
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	void *to = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *moved = mremap((void *)pages, PAGES * PAGE, PAGES * PAGE, flags, to);
	expect_equal("mremap", (long)to, (long)moved);
	pages = to;
}

static void expect_sum(void)
{
	pthread_mutex_lock(&shared->lock);
	unsigned long sum = 0;
	for (int i = 0; i < members; i++)
		sum += shared->turns[i];
	expect_equal("sum", sum, shared->sum);
	/* One after the lock is not counted yet. */
	expect_range("counted", sum - members, sum, atomic_load(&shared->counted));
	pthread_mutex_unlock(&shared->lock);
}

static volatile sig_atomic_t is_told;

static void tell(int signal)
{
	(void)signal;
	is_told = 1;
}

static void become_another(void)
{
	execlp("sleep", "sleep", "1000", NULL);
	_exit(127);
}

/* Another child, which sees what the others do, until SIGUSR1 makes it another program. */
static void begin_more(void)
{
	must(more < MORE_MAX, "no more");
	pid_t parent = getpid(), pid = fork();
	if (pid == 0) {
		close(0);
		close(1);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGUSR1, tell);
		while (getppid() == parent && !first_failure[0]) {
			if (is_told)
				become_another();
			expect_sum();
			atomic_fetch_add(&shared->beats[more], 1);
			usleep(1000);
		}
		_exit(first_failure[0] ? SETUP_FAILED_STATUS : 0);
	}
	more++;
	say("MORE %d\n", pid);
}

/* A child that is another program. */
static void run(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		close(0);
		close(1);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		become_another();
	}
	say("RUNS %d\n", pid);
}

/* Each of the others goes on. */
static void expect_beats(void)
{
	for (int i = 0; i < more; i++) {
		unsigned long before = atomic_load(&shared->beats[i]);
		for (int wait = 0; atomic_load(&shared->beats[i]) == before; wait++) {
			must(wait < 20000, "a beat");
			usleep(1000);
		}
	}
}

static void check(void)
{
	step();
	expect_beats();
	expect_equal("children that ended", members > 1 || more ? 0 : -1, waitpid(-1, NULL, WNOHANG));
	struct shmid_ds status;
	if (segment >= 0) {
		expect_equal("shmctl", 0, shmctl(segment, IPC_STAT, &status));
		expect_equal("attached", members, status.shm_nattch);
		expect_equal("size", sizeof *shared, status.shm_segsz);
		expect_equal("no segment", -1, shmget(0x7e57ab5e, 4096, 0));
		expect_equal("errno of none", ENOENT, errno);
	}
	expect_sum();
}

/* Each is there before the next begins. */
static void begin_and_end(int times)
{
	unsigned long before = shared->extra;
	int statuses = 0;
	for (int i = 0; i < times; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			shared->extra++;
			_exit(0);
		}
		int status = -1;
		if (pid > 0)
			waitpid(pid, &status, 0);
		statuses |= status;
	}
	say("FORKED %d %lu\n", statuses, shared->extra - before);
}

static void command(const char *line)
{
	int times;
	if (!strcmp(line, "attach")) {
		attach_another();
		say("ATTACHED\n");
	} else if (!strcmp(line, "unmap")) {
		say("UNMAPPED %d\n", munmap((void *)(pages + (PAGES + 1) * PAGE), PAGE));
	} else if (!strcmp(line, "move")) {
		move_pages_away();
		say("MOVED\n");
	} else if (!strcmp(line, "sum")) {
		say("SUM %lu\n", shared->sum);
	} else if (!strcmp(line, "more")) {
		begin_more();
	} else if (!strcmp(line, "run")) {
		run();
	} else if (sscanf(line, "fork %d", &times) == 1) {
		begin_and_end(times);
	}
}
