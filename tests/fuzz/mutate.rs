//! Inputs made from other inputs.

/// Values at which decoders go wrong.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    4,
    7,
    8,
    15,
    16,
    64,
    127,
    128,
    255,
    256,
    1023,
    4095,
    4096,
    4097,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x3f_ffff,
    0x40_0000,
    0x40_0001,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff0,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_f001,
    u64::MAX,
];

const CHANGES_MAX: usize = 6;

pub struct Mutator(u64);

pub fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

impl Mutator {
    /// The same name gives the same inputs in every run of a build.
    pub fn new(name: &str) -> Self {
        Self(hash(name.as_bytes()) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }

    pub fn mutate(&mut self, kept: &[Vec<u8>], max: usize) -> Vec<u8> {
        let mut input =
            if kept.is_empty() { Vec::new() } else { kept[self.below(kept.len())].clone() };
        for _ in 0..1 + self.below(CHANGES_MAX) {
            self.change(&mut input, kept);
        }
        input.truncate(max);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, kept: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.next() as u8,
            2 => self.overwrite_with_edge(input, at),
            3 => input.truncate(at),
            4 => {
                let end = at + self.below(input.len() - at + 1);
                input.drain(at..end);
            }
            5 => {
                let noise: Vec<u8> = (0..self.below(32)).map(|_| self.next() as u8).collect();
                input.splice(at..at, noise);
            }
            6 if !kept.is_empty() => {
                let other = &kept[self.below(kept.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = at + self.below((input.len() - at).min(256) + 1);
                let repeated = input[at..end].to_vec();
                input.splice(at..at, repeated);
            }
        }
    }

    /// Little-endian, one to eight bytes wide.
    fn overwrite_with_edge(&mut self, input: &mut [u8], at: usize) {
        let edge = EDGES[self.below(EDGES.len())].to_le_bytes();
        let width = (1 << self.below(4)).min(input.len() - at);
        input[at..at + width].copy_from_slice(&edge[..width]);
    }
}
