//! Promises: programs in a commit that check something on a host, and make it so where it is not.
//!
//! `.git-devops/promises/NN-NAME`, executable: called with `check`, it ends with 0 (kept) or 1 (not kept); with `apply`, it makes it kept.

use std::path::PathBuf;

use super::Host;
use super::history::Model;
use super::plan::names_in;
use super::run::{Ended, Ground, Job};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::file::index::ChunkIndex;
use crate::git::index::CachedStat;
use crate::git::object::EXECUTABLE;
use crate::git::{ObjectKind, Oid, PackWriter};
use crate::progress::Progress;
use crate::repo::scan::Staged;
use crate::repo::stage::{record_on, remove_on};
use crate::repo::{Repo, wip};
use crate::store::Writer;

/// Where they are in a commit.
pub const PROMISES: &[u8] = b".git-devops/promises/";
/// How long a name may be, in bytes.
const MAX_NAME: usize = 64;
/// How long a program may be, in bytes; and how many there may be, and how long together.
const MAX_PROGRAM: usize = 1 << 20;
const MAX_PROMISES: usize = 1000;
const MAX_ALL: u64 = 32 << 20;

/// A promise of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Its name, which says when it has its turn.
    pub name: String,
    /// Those that are kept before it has its turn.
    pub needs: Vec<String>,
    program: Vec<u8>,
}

impl Promise {
    /// Takes a program; what it needs stands in the comments at its beginning, as `# needs: NN-NAME ...`, and comes before it.
    pub fn new(name: &str, program: Vec<u8>) -> Result<Self> {
        let what = || format!("cannot use promise '{}'", name.escape_debug());
        let wrong = |message: String| Err(Error::new(Kind::Refused, message)).context(what);
        if !is_name(name) {
            return wrong("its name is to be two digits, '-', and letters a-z, digits, '-'".to_owned());
        }
        if program.len() > MAX_PROGRAM || program.is_empty() || ChunkIndex::is_index(&program) {
            return wrong(format!("a program is not empty, and has at most {MAX_PROGRAM} bytes"));
        }
        let needs = needs_of(&program);
        match needs.iter().find(|need| !is_name(need) || need.as_str() >= name) {
            Some(need) => wrong(format!("it needs '{}', which is to be a promise that comes before it", need.escape_debug())),
            None => Ok(Self { name: name.to_owned(), needs, program }),
        }
    }

    /// Runs it with the word `check` or `apply`, from a copy in `dir` that nobody else can write.
    pub(super) fn run(&self, ground: &Ground, dir: &std::path::Path, word: &str) -> Result<(Ended, Vec<u8>)> {
        let copy = dir.join(&self.name);
        if !durable::is_there(&copy) {
            durable::publish(&copy, &self.program, 0o700)?;
        }
        let program = ground.inner(&copy).into_os_string().into_encoded_bytes();
        let ran = ground.run(&Job::of(vec![program, word.as_bytes().to_vec()]));
        // One that cannot be started stops no other.
        ran.or_else(|error| Ok((Ended::Code(126), format!("{error:#}\n").into_bytes())))
    }
}

/// Says whether a promise can have this name.
fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let is_letter = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (4..=MAX_NAME).contains(&bytes.len())
        && bytes[..2].iter().all(u8::is_ascii_digit)
        && bytes[2] == b'-'
        && bytes[3] != b'-'
        && bytes[3..].iter().all(is_letter)
}

fn needs_of(program: &[u8]) -> Vec<String> {
    let comments = program.split(|&b| b == b'\n').take_while(|line| line.starts_with(b"#"));
    let text = comments.filter_map(|line| std::str::from_utf8(line).ok()?.strip_prefix('#')?.trim_start().strip_prefix("needs:"));
    text.flat_map(|words| words.split([' ', ',', '\t'])).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Returns the promises of a tree, in their order.
pub fn promises(repo: &Repo, tree: Oid) -> Result<Vec<Promise>> {
    let found = names_in(repo, tree, PROMISES)?;
    if found.len() > MAX_PROMISES {
        let message = format!("there are {} promises; at most {MAX_PROMISES} are kept", found.len());
        return Err(Error::new(Kind::Refused, message));
    }
    let mut n_left = MAX_ALL;
    let mut read = |(name, oid): (Vec<u8>, Oid)| {
        let name = String::from_utf8_lossy(&name);
        let what = || format!("cannot use promise '{}'", name.escape_debug());
        let program = repo.objects.short(&oid, ObjectKind::Blob, n_left.min(MAX_PROGRAM as u64)).context(what)?;
        n_left -= program.len() as u64;
        Promise::new(&name, program)
    };
    let mut all = found.into_iter().map(&mut read).collect::<Result<Vec<Promise>>>()?;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

impl Host<'_> {
    /// Adds a promise, or another version of it, to the work in progress.
    pub fn set_promise(&mut self, promise: &Promise, progress: &Progress) -> Result<Option<Oid>> {
        self.follow(Model::Congruent)?;
        let path = [PROMISES, promise.name.as_bytes()].concat();
        let extra = |_: &_, pack: &PackWriter<'_>, _: &Writer| {
            let oid = pack.blob(&promise.program)?;
            Ok(vec![Staged { path: path.clone(), oid, mode: EXECUTABLE, stat: CachedStat::default() }])
        };
        let (line, info) = (wip::line(self.repo)?, self.info(format!("promise {}", promise.name)));
        Ok(record_on(self.repo, &self.lock, &line, &self.nothing()?, Some(&info), &extra, progress)?.commit)
    }

    /// Takes the promise `name` away, in the work in progress.
    pub fn remove_promise(&mut self, name: &str) -> Result<Option<Oid>> {
        self.follow(Model::Congruent)?;
        let line = wip::line(self.repo)?;
        let path = [PROMISES, name.as_bytes()].concat();
        remove_on(self.repo, &self.lock, &line, &path, &self.info(format!("no promise {name}")))
            .context(|| format!("cannot remove promise '{}'", name.escape_debug()))
    }

    /// Returns the directory where programs of promises lie while they run, empty.
    pub(super) fn promise_dir(&self) -> Result<PathBuf> {
        let dir = self.state().join("promises");
        durable::remove_dir_all(&dir)?;
        durable::create_private_dir(&dir)?;
        Ok(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_needs_stands_in_its_first_comments() {
        let program = b"#!/bin/sh\n# Sets it up.\n# needs: 05-a, 10-b\n#needs: 11-c\n\n# needs: 12-d\n".to_vec();
        assert_eq!(Promise::new("20-x", program.clone()).unwrap().needs, ["05-a", "10-b", "11-c"]);
        assert!(Promise::new("10-b", program).unwrap_err().to_string().contains("10-b"), "itself, and one that follows");
        for name in ["", "1-a", "100-a", "10-", "10--a", "10-A", "10-a/b", "10-a.b", "x0-a", &format!("10-{}", "a".repeat(62))] {
            assert!(Promise::new(name, b"x".to_vec()).is_err(), "{name}");
        }
        assert!(Promise::new("10-a", Vec::new()).is_err());
    }
}
