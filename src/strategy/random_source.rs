use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// A worker's source of random numbers: small, fast, not for secrets.
#[derive(Debug)]
pub struct Dice(SmallRng);

impl Dice {
    /// Dice that fall differently in each process and worker.
    pub fn new() -> Self {
        Self(SmallRng::from_rng(&mut rand::rng()))
    }

    /// Dice that always fall the same: for tests and the simulator.
    pub fn seeded(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// Any number.
    pub fn bits(&mut self) -> u64 {
        self.0.random()
    }

    /// A number below `n`, which is above 0, by multiply and shift: no division, no rejection; the bias is below `n / 2^32`.
    pub fn below(&mut self, n: usize) -> usize {
        scale(self.bits() as u32, n)
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}

/// Scales 32 random bits to a number below `n`.
pub(super) fn scale(bits: u32, n: usize) -> usize {
    ((u64::from(bits) * n as u64) >> 32) as usize
}
