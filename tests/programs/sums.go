// Goroutines that compute, and channels between them.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"sync"
)

const workers, rounds, report = 8, 4000000, 400000

func main() {
	sums := make(chan string, workers)
	var all sync.WaitGroup
	for w := 0; w < workers; w++ {
		all.Add(1)
		go func(w int) {
			defer all.Done()
			sum := [32]byte{byte(w)}
			for i := 1; i <= rounds; i++ {
				sum = sha256.Sum256(sum[:])
				if i%report == 0 {
					sums <- fmt.Sprintf("%d %d %x", w, i, sum)
				}
			}
		}(w)
	}
	go func() { all.Wait(); close(sums) }()
	said := map[string]bool{}
	for sum := range sums {
		said[sum] = true
	}
	var total [32]byte
	for sum := range said {
		one := sha256.Sum256([]byte(sum))
		for i := range total {
			total[i] ^= one[i]
		}
	}
	fmt.Printf("%d %x\n", len(said), total)
	os.Exit(9)
}
