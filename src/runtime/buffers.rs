//! Buffers for large blocks, used again. New memory costs more than reading into it: the
//! kernel zeroes each page at its first touch (measured: 1.0 GB/s into new buffers, 7.7
//! into used ones).

use bytes::Bytes;
use parking_lot::Mutex;

/// Capacity of each, in bytes: a leaf of the usual profile.
const CAPACITY: usize = 1 << 20;
/// Kept for later at most.
const KEPT: usize = 16;

static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Comes back when the last of its `Bytes` goes.
struct Buffer {
    memory: Vec<u8>,
    len: usize,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = FREE.lock();
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}

/// So many bytes, as `fill` makes them. It must write all: what was read before may be
/// in the buffer.
///
/// # Errors
/// What `fill` says.
pub fn filled<E>(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Bytes, E> {
    // Small ones would hold much more memory than they have bytes.
    if len <= CAPACITY / 2 || len > CAPACITY {
        let mut memory = vec![0; len];
        fill(&mut memory)?;
        return Ok(memory.into());
    }
    let used = FREE.lock().pop();
    let mut buffer = Buffer { memory: used.unwrap_or_else(|| vec![0; CAPACITY]), len };
    fill(&mut buffer.memory[..len])?;
    Ok(Bytes::from_owner(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_they_were_filled_whatever_buffer_they_are_in() {
        let make = |len: usize, byte: u8| {
            let filled = filled(len, |buf| {
                buf.fill(byte);
                Ok::<(), ()>(())
            });
            filled.unwrap()
        };
        for len in [0, 1, CAPACITY / 2, CAPACITY / 2 + 1, CAPACITY, CAPACITY + 1] {
            let first = make(len, 1);
            let part = first.slice(len / 3..);
            drop(first);
            let second = make(len, 2);
            assert!(part.iter().all(|byte| *byte == 1) && part.len() == len - len / 3);
            assert!(second.iter().all(|byte| *byte == 2) && second.len() == len);
        }
        let many: Vec<Bytes> = (0..2 * KEPT).map(|_| make(CAPACITY, 3)).collect();
        drop(many);
        assert!(FREE.lock().len() <= KEPT);
        assert_eq!(filled(CAPACITY, |_| Err("why")), Err("why"));
    }
}
