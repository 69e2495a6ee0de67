// Counts the primes below its argument by trial division: no memory, no system call, no exit of its own.
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
	unsigned limit = argc > 1 ? atoi(argv[1]) : 1000, count = 0;
	for (unsigned n = 2; n < limit; n++) {
		unsigned d = 2;
		while (d * d <= n && n % d) d++;
		count += d * d > n;
	}
	printf("%u primes\n", count);
	return 0;
}
