/*
 * A parent and its children (first argument: how many) take turns in memory that they share, by a
 * mutex and a condition of several processes; each counts for itself, too. With a second argument it
 * is System V memory, and READY tells its number: "destroyed" or "lasting"; or it has huge pages:
 * "huge"; or it is files in a DIRECTORY: "file", "deleted" or "large" DIRECTORY. Those that are not
 * large are read by calls, too; "reader" behind it is a last child that may not write. "unmap" and
 * "move" are of a part of it, in the parent alone.
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
#define LARGE (4 << 20)

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
static const char *path;
static int is_deleted, is_large;
/* What they take turns in, and the pages. */
static int files[2] = { -1, -1 };

static void end_child(void)
{
	if (first_failure[0])
		dprintf(2, "child %d: %s\n", getpid(), first_failure);
	_exit(first_failure[0] ? SETUP_FAILED_STATUS : 0);
}

static off_t place_in(int page)
{
	return (off_t)page * PAGE + page;
}

/* Whatever the way that it was stored. */
static void expect_in_file(int page, unsigned char value)
{
	unsigned char byte = ~value;
	expect_equal("pread", 1, pread(files[1], &byte, 1, place_in(page)));
	expect_equal("in the file", value, byte);
}

static const char *name_of(int i)
{
	static char name[256];
	snprintf(name, sizeof name, "%s/%d", path, i);
	return name;
}

/* Written by calls: the others see it. Then longer, and as long again. */
static void alter_pages(void)
{
	pthread_mutex_lock(&shared->lock);
	unsigned char block[PAGE];
	memcpy(block, (void *)pages, PAGE);
	block[PAGE - 1]++;
	expect_equal("pwrite", PAGE, pwrite(files[1], block, PAGE, 0));
	expect_equal("written", block[PAGE - 1], pages[PAGE - 1]);
	pthread_mutex_unlock(&shared->lock);
	off_t end = (PAGES + MORE_PAGES) * PAGE;
	expect_equal("ftruncate", 0, ftruncate(files[1], end + PAGE));
	expect_equal("longer", end + PAGE, lseek(files[1], 0, SEEK_END));
	expect_equal("truncate", 0, truncate(name_of(1), end));
	expect_equal("as before", end, lseek(files[1], 0, SEEK_END));
}

/* What the one before has written is there, and what one writes stays. */
static void take_turn(int me)
{
	pthread_mutex_lock(&shared->lock);
	while (shared->next != me)
		pthread_cond_wait(&shared->turn, &shared->lock);
	for (int page = 0; page < PAGES; page++)
		expect_equal("page", (shared->sum + page) & 255, pages[place_in(page)]);
	for (int page = 0; path && !is_large && page < PAGES; page += 8)
		expect_in_file(page, shared->sum + page);
	expect_equal("own turns", mine, shared->turns[me]);
	shared->turns[me] = ++mine;
	shared->sum++;
	for (int page = 0; page < PAGES; page++)
		pages[place_in(page)] = shared->sum + page;
	shared->next = (me + 1) % members;
	pthread_cond_broadcast(&shared->turn);
	pthread_mutex_unlock(&shared->lock);
	atomic_fetch_add(&shared->counted, 1);
}

static void *map_file(size_t bytes)
{
	int i = files[0] < 0 ? 0 : 1;
	files[i] = open(name_of(i), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	must(files[i] >= 0, "open");
	if (is_large)
		bytes = LARGE;
	must(!ftruncate(files[i], bytes), "ftruncate");
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, files[i], 0);
	must(p != MAP_FAILED, "mmap of a file");
	return p;
}

static void *map(size_t bytes)
{
	if (path)
		return map_file(bytes);
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

/* Sees turns being taken, by a descriptor that is for reading, and cannot take any. */
static void look_on(pid_t parent)
{
	char name[256];
	unsigned long seen = 0;
	close(0);
	close(1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(name, sizeof name, "/proc/self/fd/%d", files[0]);
	int reading = open(name, O_RDONLY);
	must(reading >= 0, "open to read");
	munmap(shared, sizeof *shared);
	munmap((void *)pages, (PAGES + MORE_PAGES) * PAGE);
	shared = mmap(NULL, sizeof *shared, PROT_READ, MAP_SHARED, reading, 0);
	must(shared != MAP_FAILED, "mmap to read");
	while (getppid() == parent) {
		unsigned long now = atomic_load(&shared->counted);
		must(now >= seen, "turns that are not taken back");
		must(mprotect(shared, PAGE, PROT_READ | PROT_WRITE) && errno == EACCES, "nothing to write");
		seen = now;
		usleep(1000);
	}
	_exit(0);
}

static void setup(int argc, char **argv)
{
	int children = argc > 1 ? atoi(argv[1]) : 3;
	must(children >= 0 && children <= CHILDREN_MAX, "so many children");
	members = children + 1;
	is_huge = argc == 3 && !strcmp(argv[2], "huge");
	system_v = argc == 3 && !is_huge ? argv[2] : NULL;
	path = argc > 3 ? argv[3] : NULL;
	is_deleted = path && !strcmp(argv[2], "deleted");
	is_large = path && !strcmp(argv[2], "large");
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
		pages[place_in(page)] = page;
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
			end_child();
		}
	}
	if (argc > 4 && fork() == 0)
		look_on(parent);
	for (int i = 0; is_deleted && i < 2; i++)
		unlink(name_of(i));
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
		end_child();
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
	if (path)
		expect_equal("msync", 0, msync((void *)pages, PAGES * PAGE, MS_SYNC));
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
	} else if (!strcmp(line, "alter")) {
		alter_pages();
		say("ALTERED\n");
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
