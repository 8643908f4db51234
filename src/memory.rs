//! Memory for weights: large pages where the system has them. A decode step reads every weight once, in long
//! runs; with pages of 4 kB the look-up of addresses takes a third of the time (docs/PERFORMANCE.md).

use memmap2::MmapMut;

/// Words of 32 bits, all zeros at first, beginning at a page.
#[derive(Debug)]
pub struct Memory(MmapMut);

impl Memory {
    /// # Errors
    /// The system's, where there isn't as much.
    pub fn new(words: usize) -> std::io::Result<Memory> {
        let map = MmapMut::map_anon(words.max(1) * size_of::<u32>())?;
        // Advice: where it isn't taken, all is as well, only slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Memory(map))
    }

    /// As f32 or u32.
    pub fn as_slice<T: bytemuck::AnyBitPattern>(&self) -> &[T] {
        bytemuck::cast_slice(&self.0)
    }

    pub fn as_mut_slice<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zeros_of_that_many_and_keeps_what_is_written() {
        let mut memory = Memory::new(3_000_001).unwrap();
        let zeros: &[f32] = memory.as_slice();
        assert!(zeros.len() == 3_000_001 && zeros.iter().all(|&x| x == 0.0));
        assert_eq!(zeros.as_ptr().addr() % 64, 0);
        memory.as_mut_slice()[3_000_000] = 1.5f32;
        assert_eq!(memory.as_slice::<u32>()[3_000_000], 1.5f32.to_bits());
        Memory::new(0).unwrap();
    }
}
