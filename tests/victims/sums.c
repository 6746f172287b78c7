/*
 * Computes, and writes a line for each of its steps (first argument: how many) to standard output;
 * then ends with status 7. Nothing else: two runs write the same.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 10000000

int main(int argc, char **argv)
{
	uint64_t x = 1;
	int steps = argc > 1 ? atoi(argv[1]) : 0;
	for (int step = 0; step < steps; step++) {
		for (int i = 0; i < ROUNDS; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
		}
		printf("%d %llx\n", step, (unsigned long long)x);
		fflush(stdout);
	}
	return 7;
}
