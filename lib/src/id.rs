//! Names that are hashes: which content a chunk has, which bytes a chunk pack has.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};

/// Declares a 32-byte BLAKE3 hash with a meaning of its own; printed and parsed as 64 lower-case hex digits.
macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Returns the id of `bytes`: their plain BLAKE3 hash.
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            /// Takes 32 bytes that already are such a hash.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Returns the 32 bytes of the hash.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            /// Accepts exactly 64 lower-case hex digits.
            fn from_str(text: &str) -> Result<Self> {
                parse_hex(text.as_bytes())
                    .map(Self)
                    .ok_or_else(|| Error::new(Kind::Corrupt, concat!($what, " is not 64 lower-case hex digits")))
            }
        }
    };
}

hash_type!(
    /// Names a chunk: BLAKE3-256 of its plain bytes.
    ChunkId,
    "chunk id"
);
hash_type!(
    /// Names a chunk pack: BLAKE3-256 of all its bytes.
    PackId,
    "pack id"
);
hash_type!(
    /// BLAKE3-256 of a whole file, holes read as zeros: what `b3sum` prints.
    FileHash,
    "file hash"
);

fn parse_hex(text: &[u8]) -> Option<[u8; 32]> {
    if text.len() != 64 || text.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    blake3::Hash::from_hex(text).ok().map(|hash| *hash.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_printed_and_parsed_as_64_hex_digits() {
        let id = ChunkId::of(b"");
        assert_eq!(id.to_string(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
        for bad in ["", "af13", &"AF".repeat(32), &"0".repeat(63), &"0".repeat(65), &"g".repeat(64)] {
            assert_eq!(bad.parse::<ChunkId>().unwrap_err().to_string(), "chunk id is not 64 lower-case hex digits");
        }
    }
}
