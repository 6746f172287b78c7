// Work for the JIT compiler, garbage for the collector's threads, and threads of its own.
import java.util.ArrayDeque;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.IntStream;

public class Sorts {
    static final int ROUNDS = 400, KEPT = 20;

    static long middle(int seed) {
        Random random = new Random(seed);
        int[] numbers = random.ints(60_000, 0, 1_000_000).toArray();
        Arrays.sort(numbers);
        return numbers[numbers.length / 3];
    }

    public static void main(String[] arguments) {
        ArrayDeque<long[]> kept = new ArrayDeque<>();
        long sum = 0;
        for (int round = 0; round < ROUNDS; round++) {
            int first = round * 4;
            long[] middles = IntStream.range(first, first + 4).parallel().mapToLong(Sorts::middle).toArray();
            sum += Arrays.stream(middles).sum();
            kept.add(middles);
            if (kept.size() > KEPT) kept.remove();
            if (round % 10 == 0) System.out.println(round + " " + sum);
        }
        System.out.println(sum);
        System.exit(7);
    }
}
