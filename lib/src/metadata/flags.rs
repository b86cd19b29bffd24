//! The inode flags that a person can set with `chattr`, and their names.

use std::ops::BitOr;

/// A set of inode flags, as bits of `FS_IOC_GETFLAGS`; never one that only the kernel sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u32);

/// Each flag with its name in the text, in the order of the bits; `docs/formats/metadata.md` has the same list.
const NAMES: [(&str, Flags); 17] = [
    ("secrm", Flags(0x0000_0001)),
    ("unrm", Flags(0x0000_0002)),
    ("compress", Flags::COMPRESS),
    ("sync", Flags(0x0000_0008)),
    ("immutable", Flags::IMMUTABLE),
    ("append", Flags::APPEND),
    ("nodump", Flags(0x0000_0040)),
    ("noatime", Flags(0x0000_0080)),
    ("nocompress", Flags::NOCOMPRESS),
    ("journal-data", Flags(0x0000_4000)),
    ("notail", Flags(0x0000_8000)),
    ("dirsync", Flags(0x0001_0000)),
    ("topdir", Flags(0x0002_0000)),
    ("nocow", Flags::NOCOW),
    ("dax", Flags::DAX),
    ("projinherit", Flags(0x2000_0000)),
    ("casefold", Flags::CASEFOLD),
];

impl Flags {
    /// Nobody can change, remove, rename or link it.
    pub const IMMUTABLE: Self = Self(0x0000_0010);
    /// It can only grow.
    pub const APPEND: Self = Self(0x0000_0020);
    /// The filesystem compresses it.
    pub const COMPRESS: Self = Self(0x0000_0004);
    /// The filesystem does not compress it.
    pub const NOCOMPRESS: Self = Self(0x0000_0400);
    /// The filesystem overwrites it in place.
    pub const NOCOW: Self = Self(0x0080_0000);
    /// Access goes around the page cache.
    pub const DAX: Self = Self(0x0200_0000);
    /// Names in this directory match in any case.
    pub const CASEFOLD: Self = Self(0x4000_0000);

    /// Flags that forbid to change, replace or remove the file.
    pub const LOCKING: Self = Self(Self::IMMUTABLE.0 | Self::APPEND.0);
    /// Flags that only an empty file or directory takes, or that count only for what is written later.
    pub const BEFORE_CONTENT: Self = Self(Self::COMPRESS.0 | Self::NOCOMPRESS.0 | Self::NOCOW.0 | Self::DAX.0 | Self::CASEFOLD.0);

    /// Returns the flags among `bits` that a person can set; the kernel's own are left out.
    pub fn from_bits(bits: u32) -> Self {
        Self(NAMES.iter().fold(0, |all, (_, flag)| all | bits & flag.0))
    }

    /// Returns the flags as `FS_IOC_SETFLAGS` takes them.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Says whether no flag is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the flags that are in both sets.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the flags that are not in `other`.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns each flag of the set with its name, in the order of the text.
    pub fn iter(self) -> impl Iterator<Item = (&'static str, Self)> {
        NAMES.into_iter().filter(move |(_, flag)| self.0 & flag.0 != 0)
    }

    /// Returns every flag there is.
    pub fn all() -> Self {
        Self::from_bits(u32::MAX)
    }

    /// Returns the flag called `name`.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, flag)| *flag)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_kernel_sets_is_left_out() {
        let (extents, encrypted) = (0x0008_0000, 0x0000_0800);
        assert_eq!(Flags::from_bits(extents | encrypted | 0x10), Flags::IMMUTABLE);
    }

    #[test]
    fn each_flag_has_one_name_and_one_bit() {
        for (name, flag) in Flags::all().iter() {
            assert_eq!(flag.bits().count_ones(), 1, "{name}");
            assert_eq!(Flags::named(name), Some(flag));
        }
        assert_eq!(Flags::all().iter().count(), NAMES.len());
        assert_eq!(Flags::named("none"), None);
    }
}
