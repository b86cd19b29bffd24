//! Gives up copies that enough others hold: first the promise lapses, then others are asked, then the chunks go.
//!
//! The rules and their reasons: `docs/formats/holders.md`.

use std::collections::HashSet;

use super::Repo;
use super::check::for_each_index;
use super::holders::{self, Own};
use super::pathset::PathSet;
use super::tree::StoredDir;
use crate::error::{Context, Error, Kind, Result};
use crate::file::read;
use crate::git::Oid;
use crate::id::ChunkId;
use crate::placement::inquiry::{Inquiry, Moment, Terms};
use crate::placement::{HolderId, is_share};
use crate::progress::Progress;
use crate::remote::ask::Line;
use crate::remote::wire::{self, MAX_PROVE};
use crate::store::MAX_CHUNK;

/// What is to be given up.
#[derive(Clone, Debug)]
pub enum What {
    /// What the large files of this tree at and below the paths have, and no other file of it.
    Files(Oid, Vec<Vec<u8>>),
    /// All that is not this holder's share.
    Surplus,
    /// All of which the promise lapses already.
    Lapsing,
}

/// How it is done.
pub struct DropOptions<'a> {
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Reads this host's clocks.
    pub clock: &'a dyn Fn() -> Moment,
}

/// What a drop did.
#[derive(Debug, Default)]
pub struct Dropped {
    /// Chunks that are here and were to go.
    pub n_asked: u64,
    /// Of them: this holder's own share; it stays.
    pub n_share: u64,
    /// Of them: their promise is not over; now it lapses.
    pub n_lapsing: u64,
    /// When all of these may go, in seconds since 1970.
    pub due: u64,
    /// Of them: others could not be found to hold enough copies; they stay.
    pub n_kept: u64,
    /// Of them: others hold enough copies, and yet they are here still, in packs that are damaged or that the disk has no room to rewrite.
    pub n_left: u64,
    /// Of them: gone.
    pub n_removed: u64,
    /// Bytes on the disk that are free now.
    pub n_bytes: u64,
    /// Holders that were asked, by their names here, each with what went wrong.
    pub asked: Vec<(String, Option<Error>)>,
}

/// Gives up what may go of `what`, asking on `lines`, one to each other host.
///
/// Fails with [`Kind::Conflict`], having removed nothing more, if clocks disagree; with [`Kind::Locked`] while somebody stores chunks or collects garbage.
pub fn drop_copies(
    repo: &Repo,
    what: &What,
    lines: Vec<Line>,
    options: &DropOptions<'_>,
    progress: &Progress,
) -> Result<Dropped> {
    let terms = holders::terms(repo)?;
    let (own, lock) = match Own::open_if_holder(repo)? {
        Ok(own) => (Some(own), None),
        Err(lock) => (None, Some(lock)),
    };
    let mut run = Run { repo, terms, own, lines, options, progress, dropped: Dropped::default() };
    progress.stage("looking for chunks to drop", 0, 0);
    let chunks = run.candidates(what)?;
    run.dropped.n_asked = chunks.len() as u64;
    let due = run.lapse(run.without_share(chunks)?)?;
    if !options.dry_run {
        run.remove_all(&due)?;
    }
    let Run { lines, mut dropped, .. } = run;
    dropped.asked.extend(lines.iter().map(|line| (line.name().to_owned(), None)));
    std::mem::drop(lock);
    Ok(dropped)
}

struct Run<'a> {
    repo: &'a Repo,
    terms: Terms,
    own: Option<Own>,
    /// Those that answer still.
    lines: Vec<Line>,
    options: &'a DropOptions<'a>,
    progress: &'a Progress,
    dropped: Dropped,
}

impl Run<'_> {
    /// Returns what is here of `what`, ascending.
    fn candidates(&self, what: &What) -> Result<Vec<ChunkId>> {
        match what {
            What::Files(tree, paths) => self.of_files(*tree, paths),
            What::Surplus if self.own.is_none() => Err(Error::new(
                Kind::Usage,
                "this host is no holder, so that nothing here is beyond its share; name files instead",
            )),
            What::Surplus => {
                let mut all = Vec::new();
                self.repo.store.for_each_chunk(&mut |id| {
                    all.push(id);
                    Ok(())
                })?;
                Ok(all)
            }
            What::Lapsing => {
                let lapsing = self.own.iter().flat_map(|own| own.ledger.lapsing().copied());
                lapsing.filter_map(|id| self.repo.store.contains(&id).map(|is_here| is_here.then_some(id)).transpose()).collect()
            }
        }
    }

    /// A chunk that another file of the tree has, too, stays for that one.
    fn of_files(&self, tree: Oid, paths: &[Vec<u8>]) -> Result<Vec<ChunkId>> {
        let selected = PathSet::new(paths);
        let (mut wanted, mut needed) = (HashSet::new(), HashSet::new());
        let mut todo = vec![StoredDir::root(self.repo, tree)?];
        while let Some(node) = todo.pop() {
            let listing = node.list(self.repo)?;
            for (name, item) in &listing.files {
                let Some(index) = item.content.map(|blob| self.repo.chunk_index(&blob)).transpose()?.flatten() else { continue };
                let is_selected = selected.covers(&super::scan::join(&node.path, name));
                let walked = read::for_each_chunk(&self.repo.chunks, &index, &mut |id| {
                    if is_selected { &mut wanted } else { &mut needed }.insert(id);
                    Ok(())
                });
                match walked {
                    // A list is not here: then nothing that only it leads to is known.
                    Err(error) if error.kind() == Kind::NotFound => (),
                    other => other?,
                }
            }
            todo.extend(listing.dirs.into_values());
        }
        let mut chunks = Vec::new();
        for id in wanted.difference(&needed) {
            chunks.extend(self.repo.store.contains(id)?.then_some(*id));
        }
        chunks.sort_unstable();
        Ok(chunks)
    }

    /// Takes out what is this holder's share; what lists chunks is everybody's.
    fn without_share(&self, mut chunks: Vec<ChunkId>) -> Result<Vec<ChunkId>> {
        let Some(own) = &self.own else { return Ok(chunks) };
        let lists = self.lists()?;
        let now = (self.options.clock)().wall;
        let counting = holders::counting(self.repo, Some(&own.ledger), &holders::known(self.repo)?, now)?;
        let id = own.ledger.holder;
        chunks.retain(|chunk| !lists.contains(chunk) && !is_share(&id, &counting, self.terms.copies, chunk));
        Ok(chunks)
    }

    fn lists(&self) -> Result<HashSet<ChunkId>> {
        let mut lists = HashSet::new();
        for_each_index(self.repo, &mut |_, index| {
            let walked = read::for_each_list(&self.repo.chunks, &index?, &mut |id| {
                lists.insert(id);
                Ok(())
            });
            match walked {
                // One that is not here cannot be dropped, and what it leads to is no list that is here.
                Err(error) if error.kind() == Kind::NotFound => Ok(()),
                other => other,
            }
        })?;
        Ok(lists)
    }

    /// Lets promises lapse; returns those that are over.
    fn lapse(&mut self, chunks: Vec<ChunkId>) -> Result<Vec<ChunkId>> {
        self.dropped.n_share = self.dropped.n_asked - chunks.len() as u64;
        let Some(own) = &mut self.own else { return Ok(chunks) };
        let (now, max_skew) = ((self.options.clock)().wall, self.terms.max_skew);
        let (over, bound): (Vec<_>, Vec<_>) = chunks.into_iter().partition(|chunk| own.ledger.is_over(chunk, now, max_skew));
        let n = own.ledger.lapse(bound.iter().copied());
        self.dropped.n_lapsing = n as u64;
        self.dropped.n_kept = (bound.len() - n) as u64;
        self.dropped.due =
            bound[..n].iter().map(|chunk| own.ledger.promise_of(chunk).saturating_add(max_skew + 1)).max().unwrap_or(0);
        if !self.options.dry_run && n > 0 {
            own.ledger.write_lapsing(self.repo.store.dir())?;
        }
        Ok(over)
    }

    /// Asks and removes, as many at a time as can be asked about within half of the window.
    fn remove_all(&mut self, chunks: &[ChunkId]) -> Result<()> {
        self.progress.stage("asking other holders", chunks.len() as u64, 0);
        let mut rest = chunks;
        while !rest.is_empty() {
            let begun = (self.options.clock)();
            let mut inquiries = Vec::new();
            while let Some((some, others)) = rest.split_at_checked(MAX_PROVE.min(rest.len())).filter(|(some, _)| !some.is_empty())
            {
                inquiries.push(self.inquire(some)?);
                self.progress.add(some.len() as u64, 0);
                rest = others;
                if (self.options.clock)().boot.saturating_sub(begun.boot).as_secs() > self.terms.window / 2 {
                    break;
                }
            }
            self.remove(&inquiries)?;
        }
        Ok(())
    }

    /// Asks every host about some chunks.
    fn inquire(&mut self, chunks: &[ChunkId]) -> Result<Inquiry> {
        let mut nonce = [0; 32];
        fill_random(&mut nonce)?;
        let mut known = Vec::new();
        let mut plain = Vec::new();
        for id in chunks {
            match self.repo.store.read_into(id, &mut plain, MAX_CHUNK) {
                Ok(()) => known.push((*id, wire::proof(&nonce, &plain))),
                // What cannot be read here cannot be compared: it stays, for 'check'.
                Err(error) if error.kind() == Kind::Corrupt => self.dropped.n_kept += 1,
                Err(error) => return Err(error),
            }
        }
        let ids: Vec<ChunkId> = known.iter().map(|(id, _)| *id).collect();
        let own = self.own.as_ref().map_or(HolderId::NONE, |own| own.ledger.holder);
        let mut inquiry = Inquiry::new(own, self.terms, (self.options.clock)(), known);
        if ids.is_empty() {
            return Ok(inquiry);
        }
        for mut line in std::mem::take(&mut self.lines) {
            match line.promises(nonce, ids.clone()) {
                Ok(answer) => {
                    let name = line.name().to_owned();
                    inquiry.take(&answer, (self.options.clock)()).context(|| format!("cannot count on '{name}'"))?;
                    self.lines.push(line);
                }
                Err(error) => self.dropped.asked.push((line.name().to_owned(), Some(error))),
            }
        }
        Ok(inquiry)
    }

    fn remove(&mut self, inquiries: &[Inquiry]) -> Result<()> {
        let clock = self.options.clock;
        let mut doomed = Vec::new();
        for inquiry in inquiries {
            let verdict = inquiry.verdict(clock())?;
            self.dropped.n_kept += (inquiry.n_copies().len() - verdict.len()) as u64;
            doomed.extend(verdict);
        }
        if doomed.is_empty() {
            return Ok(());
        }
        doomed.sort_unstable();
        self.progress.stage("removing chunks", 0, 0);
        let mut may_go = || inquiries.iter().try_for_each(|inquiry| inquiry.still_counts(clock()));
        let report = self.repo.store.remove_chunks(&doomed, &mut may_go, self.progress)?;
        // A pack that is damaged, or that the full disk leaves no room to rewrite, stays as it is.
        let n_doomed = doomed.len();
        let mut gone = Vec::with_capacity(n_doomed);
        for id in doomed {
            gone.extend((!self.repo.store.contains(&id)?).then_some(id));
        }
        self.dropped.n_removed += gone.len() as u64;
        self.dropped.n_left += (n_doomed - gone.len()) as u64;
        self.dropped.n_bytes += report.removed_bytes.saturating_sub(report.copied_bytes);
        let Some(own) = &mut self.own else { return Ok(()) };
        own.ledger.retain_lapsing(|id| gone.binary_search(id).is_err());
        own.ledger.write_lapsing(self.repo.store.dir())
    }
}

/// Fills `bytes` with what nobody can foresee.
pub(super) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    let n = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty()).context(|| "cannot get random bytes")?;
    match n == bytes.len() {
        true => Ok(()),
        false => Err(Error::new(Kind::Io, "cannot get random bytes")),
    }
}
