//! The file that says which generation of a store counts.

use super::{EngineKind, KvError};

/// The file's name.
pub(super) const CURRENT: &str = "CURRENT";
/// The version of the directory's layout and of the state in it.
const VERSION: u32 = 1;
const TITLE: &str = "bramble-metadata";

/// What the file says. It is text, so that a person can read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Current {
    pub(super) kind: EngineKind,
    pub(super) generation: u64,
}

impl Current {
    pub(super) fn to_text(self) -> String {
        let text = format!(
            "{TITLE} {VERSION}\nengine {}\ngeneration {}\n",
            self.kind, self.generation
        );
        let crc = crc32fast::hash(text.as_bytes());
        format!("{text}crc32 {crc:08x}\n")
    }

    /// Damage is told from a file that a later version wrote: that begins with the title and a higher number,
    /// whatever follows.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, KvError> {
        let damaged = || KvError::Damaged("its file CURRENT makes no sense".into());
        let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
        let mut lines = text.lines();
        let mut field = |name: &str| -> Result<&str, KvError> {
            let (found, value) = lines
                .next()
                .and_then(|line| line.split_once(' '))
                .ok_or_else(damaged)?;
            if found == name { Ok(value) } else { Err(damaged()) }
        };
        let version: u32 = field(TITLE)?.parse().map_err(|_| damaged())?;
        if version > VERSION {
            return Err(KvError::Unsupported(format!(
                "its version is {version}, known is {VERSION}"
            )));
        }
        let kind = field("engine")?.parse().map_err(|_| damaged())?;
        let generation = field("generation")?.parse().map_err(|_| damaged())?;
        let current = Self { kind, generation };
        if version == VERSION && generation < u64::MAX && current.to_text() == text {
            Ok(current)
        } else {
            Err(damaged())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_is_read() {
        let current = Current {
            kind: EngineKind::Sled,
            generation: 12,
        };
        let text = current.to_text();
        assert_eq!(Current::parse(text.as_bytes()).unwrap(), current);
        for at in 0..text.len() {
            let cut = &text.as_bytes()[..at];
            assert!(
                matches!(Current::parse(cut), Err(KvError::Damaged(_))),
                "cut at {at}"
            );
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                assert!(Current::parse(&bytes).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_later_version_is_not_damage() {
        let later = b"bramble-metadata 2\nsomething new\n";
        assert!(matches!(Current::parse(later), Err(KvError::Unsupported(text)) if text.contains('2')));
    }
}
