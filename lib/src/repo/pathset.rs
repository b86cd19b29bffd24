//! A set of paths, each standing for itself and all below it, or for itself alone.

use std::collections::HashSet;

use super::scan::split;

/// Paths that a person named, relative to the work tree; asking takes the time of the path's depth, however many were named.
#[derive(Clone, Debug, Default)]
pub(super) struct PathSet {
    named: HashSet<Vec<u8>>,
    above: HashSet<Vec<u8>>,
    is_exact: bool,
}

impl PathSet {
    /// Returns the set of `paths`; an empty path stands for everything.
    pub fn new(paths: &[Vec<u8>]) -> Self {
        let mut above = HashSet::new();
        for path in paths {
            let mut rest = path.as_slice();
            while !rest.is_empty() {
                rest = split(rest).0;
                if !above.insert(rest.to_vec()) {
                    break;
                }
            }
        }
        Self { named: paths.iter().cloned().collect(), above, is_exact: false }
    }

    /// Returns the set of `paths`, each of which stands for itself alone.
    pub fn exactly(paths: &[Vec<u8>]) -> Self {
        Self { is_exact: true, ..Self::new(paths) }
    }

    /// Says whether one of the paths stands for `path`.
    pub fn covers(&self, path: &[u8]) -> bool {
        if self.is_exact {
            return self.named.contains(path);
        }
        if self.named.contains(&b""[..]) {
            return true; // a deep path is long, and so would be looking for each directory above it
        }
        let mut rest = path;
        loop {
            if self.named.contains(rest) {
                return true;
            }
            if rest.is_empty() {
                return false;
            }
            rest = split(rest).0;
        }
    }

    /// Says whether `path` is itself one of the paths.
    pub fn names(&self, path: &[u8]) -> bool {
        self.named.contains(path)
    }

    /// Says whether `path` is a directory on the way to one of the paths.
    pub fn leads_to(&self, path: &[u8]) -> bool {
        self.above.contains(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stands_for_all_below_it() {
        let set = PathSet::new(&["etc/ssh", "usr/lib/x"].map(|path| path.as_bytes().to_vec()));
        for (path, covers, leads_to) in [
            ("", false, true),
            ("etc", false, true),
            ("etc/ssh", true, false),
            ("etc/ssh/keys/a", true, false),
            ("etc/sshd", false, false),
            ("usr/lib", false, true),
            ("usr/lib/xy", false, false),
        ] {
            assert_eq!((set.covers(path.as_bytes()), set.leads_to(path.as_bytes())), (covers, leads_to), "{path}");
        }
        assert!(PathSet::new(&[Vec::new()]).covers(b"anything/at/all"));
        assert!(!PathSet::new(&[]).covers(b"a"));
    }

    #[test]
    fn a_path_that_is_meant_exactly_stands_for_itself_alone() {
        let set = PathSet::exactly(&[b"etc".to_vec(), b"".to_vec()]);
        for (path, covers) in [("", true), ("etc", true), ("etc/ssh", false), ("usr", false)] {
            assert_eq!(set.covers(path.as_bytes()), covers, "{path}");
        }
    }
}
