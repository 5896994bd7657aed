//! The messages of gRPC in a sequence of bytes: five bytes of prefix, then as many as it says.

/// Bytes in front of every message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Where in the sequence of messages the bytes are. It keeps nothing of the messages.
#[derive(Debug, Default)]
pub struct FrameReader {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Of the message that is being read.
    left: usize,
}

// === impl FrameReader ===

impl FrameReader {
    /// Reads on; returns how many messages began, and their longest length.
    pub fn read(&mut self, mut bytes: &[u8]) -> (usize, usize) {
        let (mut began, mut longest) = (0, 0);
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (PREFIX_BYTES - self.prefix_bytes).min(bytes.len());
            self.prefix[self.prefix_bytes..self.prefix_bytes + taken].copy_from_slice(&bytes[..taken]);
            self.prefix_bytes += taken;
            bytes = &bytes[taken..];
            if self.prefix_bytes == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
                self.prefix_bytes = 0;
                began += 1;
                longest = longest.max(self.left);
            }
        }
        (began, longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend(message);
        bytes
    }

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let bytes = [framed(b"abc"), framed(b""), framed(&[7; 300])].concat();
        for cut in 1..bytes.len() {
            let mut reader = FrameReader::default();
            let parts: Vec<(usize, usize)> = bytes.chunks(cut).map(|chunk| reader.read(chunk)).collect();
            assert_eq!(parts.iter().map(|(began, _)| began).sum::<usize>(), 3, "cut at {cut}");
            assert_eq!(parts.iter().map(|(_, longest)| *longest).max(), Some(300), "cut at {cut}");
        }
    }
}
