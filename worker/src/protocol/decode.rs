//! UTF-8 from a stranger, in pieces.

/// Decodes chunks that may be cut inside a character. What is no UTF-8 becomes U+FFFD, as the standard library does it
/// for a whole text.
#[derive(Debug, Default)]
pub(super) struct Utf8Decoder {
    /// The beginning of a character whose end has not come yet: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Decoder {
    pub(super) fn decode(&mut self, chunk: &[u8]) -> String {
        self.pending.extend_from_slice(chunk);
        let complete = self.pending.len() - incomplete_tail(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
        self.pending.drain(..complete);
        text
    }

    /// Nothing follows: an unfinished character is replaced.
    pub(super) fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Length of the unfinished, so far valid character at the end of `bytes`.
fn incomplete_tail(bytes: &[u8]) -> usize {
    let window = &bytes[bytes.len().saturating_sub(3)..];
    (0..window.len())
        .map(|start| &window[start..])
        .find(|tail| std::str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none()))
        .map_or(0, <[u8]>::len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_cutting_gives_what_the_whole_gives(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xE2), Just(0x82), Just(0xAC), Just(0xF0), Just(0x9F)], 0..64), cut in 1usize..7) {
            let mut decoder = Utf8Decoder::default();
            let mut text: String = bytes.chunks(cut).map(|chunk| decoder.decode(chunk)).collect();
            text.push_str(&decoder.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
