//! Repair: what is damaged goes out of the way, what can be derived is made anew, what a second copy has is taken from there.
//!
//! A source is trusted only as far as the hash: every object and every chunk is verified before it is stored.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::check::for_each_index;
use super::witness::{self, Witnessed};
use super::{INDEX_NOTE, Places, Repo, enrolled, holders};
use crate::chunk::ChunkerSpec;
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::file::read;
use crate::file::write::{ChunkSink, cut_file};
use crate::git::object::{ObjectKind, decode_tree, object_id};
use crate::git::verify::Sound;
use crate::git::{CommitData, Git, Index, Kept, Objects, Oid, PackWriter};
use crate::id::ChunkId;
use crate::metadata::holes;
use crate::progress::Progress;
use crate::safepath::{Dir, FileKind};
use crate::store::{MAX_CHUNK, Store, WriteOptions, Writer};

/// What a repair did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Damaged files of git's that were put aside or made anew.
    pub n_git_files: usize,
    /// Findings in the chunk store.
    pub n_store_findings: usize,
    /// Objects of git's that came from a source.
    pub n_objects: usize,
    /// Chunks that came from a source.
    pub n_chunks: usize,
}

/// A second copy of something.
enum Source {
    Git(Box<Objects>),
    Store(Store),
    /// A directory with files as they are; with a name, that one alone.
    Files(Dir, Option<Vec<u8>>),
}

impl Source {
    /// Finds out what there is at `path`: a repository, a chunk store, a directory of files (which may have a repository in it), or one file.
    fn all_at(path: &Path) -> Result<Vec<Self>> {
        let what = || format!("cannot take anything from '{}'", path.display());
        let path = std::path::absolute(path).context(what)?;
        if durable::is_file(&path) {
            let (dir, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
            return Ok(vec![Self::Files(Dir::open(dir).context(what)?, Some(name.as_encoded_bytes().to_vec()))]);
        }
        if durable::is_dir(&path.join("packs")) && durable::is_file(&path.join("format")) {
            return Ok(vec![Self::Store(Store::open(&path).context(what)?)]);
        }
        let mut all = Vec::new();
        for git_dir in [path.clone(), path.join(".git")] {
            if !durable::is_dir(&git_dir.join("objects")) {
                continue;
            }
            all.push(Self::Git(Box::new(Objects::open(&git_dir).context(what)?)));
            let mut places = Places::apart(&git_dir, &path);
            if let Ok((_, config)) = Git::open(&git_dir) {
                places.store = places.configured_store(&config);
            }
            all.extend(Store::open(&places.store).ok().map(Self::Store));
        }
        if !durable::is_dir(&path.join("objects")) {
            all.push(Self::Files(Dir::open(&path).context(what)?, None));
        }
        Ok(all)
    }
}

/// Repairs what can be repaired with what is here, and with `from`: repositories, chunk stores, directories or files with the same content.
///
/// What was damaged lies in `quarantine` in the state directory and in the store. What is still wrong, [`super::check::check`] tells.
pub fn repair(repo: &Repo, from: &[PathBuf], progress: &Progress) -> Result<Repaired> {
    let sources = from.iter().map(|path| Source::all_at(path)).collect::<Result<Vec<_>>>()?;
    let sources: Vec<Source> = sources.into_iter().flatten().collect();
    let lock = repo.lock()?;
    match enrolled::enrol(&repo.places) {
        // Who else stood in it, only a person can know; the check says so.
        Err(error) if error.kind() == Kind::Corrupt => (),
        other => other?,
    }
    let mut repaired = Repaired::default();
    progress.stage("repairing git objects", 0, 0);
    let damaged = repo.git.check_files(&|_| false, &Sound::default(), &[])?.damaged;
    repaired.n_git_files = damaged.len();
    repo.git.put_aside_damaged(&repo.places.state, &damaged)?;
    repo.objects.refresh();
    repo.git.salvage_quarantined(&repo.places.state, &repo.objects)?;
    repaired.n_objects = mend_objects(repo, &sources, progress)?;
    progress.stage("repairing the chunk store", 0, 0);
    repaired.n_store_findings = repo.store.repair(progress)?.len();
    let cache = repo.chunks.local().cache();
    let cached = cache.store().map_or(Ok(0), |cached| cached.check(true, progress).map(|found| found.len()))?;
    if cached > 0 {
        cache.shrink(0)?;
        repaired.n_store_findings += cached;
    }
    repaired.n_chunks = mend_chunks(repo, &sources, progress)?;
    mend_index(repo)?;
    repaired.n_store_findings += usize::from(holders::mend(repo)?);
    if repaired != Repaired::default() {
        // What the work tree still has is read again, so that what is still lost comes back with the next snapshot.
        durable::remove(&repo.places.state.join(INDEX_NOTE))?;
    }
    repo.repair_refs(&lock)?;
    Ok(repaired)
}

/// Makes the repository one that can be opened: HEAD, configuration, and the file that says what the store is; returns what was put back.
pub fn prepare(places: &Places) -> Result<Witnessed> {
    places.must_be_within()?;
    let witnessed = witness::heal_files(places)?;
    let (_, config) = Git::open(&places.git_dir)?;
    Store::mend_format(&places.configured_store(&config))?;
    Ok(witnessed)
}

/// Gives up a damaged git index: one that is missing is made from HEAD.
fn mend_index(repo: &Repo) -> Result<()> {
    let is_bad = match Index::read(&repo.index_path()) {
        Err(error) if error.kind() == Kind::Corrupt => true,
        Err(error) => return Err(error),
        Ok(index) => repo.is_index_lost() || repo.is_index_stale(&index),
    };
    if is_bad {
        durable::remove(&repo.index_path())?;
        durable::remove(&repo.places.state.join(INDEX_NOTE))?;
    }
    Ok(())
}

/// Takes missing objects, and what they lead to, from the sources; returns how many.
fn mend_objects(repo: &Repo, sources: &[Source], progress: &Progress) -> Result<usize> {
    let mut n_found = 0;
    for _ in 0..MAX_ROUNDS {
        let missing = missing_objects(repo)?;
        if missing.is_empty() || sources.is_empty() {
            break;
        }
        let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
        for source in sources {
            match source {
                Source::Git(objects) => copy_with_all_below(&missing, objects, &repo.objects, &pack)?,
                Source::Files(dir, name) => {
                    for_each_file(dir, name.as_deref(), &mut |file| offer_blobs(repo, file, &missing, &pack, progress))?;
                }
                Source::Store(_) => (),
            }
        }
        let n_new = pack.n_objects();
        pack.finish()?.map_or(Ok(()), Kept::release)?;
        repo.objects.refresh();
        n_found += n_new;
        if n_new == 0 {
            break;
        }
    }
    Ok(n_found)
}

/// Each round finds what the objects of the last one lead to.
const MAX_ROUNDS: usize = 100;

/// Returns the objects that something refers to and that are not here, as far as git can tell: what a missing tree leads to it can't.
fn missing_objects(repo: &Repo) -> Result<HashSet<Oid>> {
    let output = repo.git.output(&["fsck", "--connectivity-only", "--no-dangling", "--no-progress"], b"")?;
    let said = [output.stdout, output.stderr].concat();
    let words = said.split(|b| !b.is_ascii_hexdigit()).filter(|word| word.len() == 40);
    let named = words.filter_map(|word| Oid::from_hex(word).ok());
    let of_refs = repo.witnessed.open.iter().flat_map(|found| found.wanted());
    Ok(named.chain(of_refs).filter(|oid| !oid.is_null() && !matches!(repo.objects.find(oid), Ok(Some(_)))).collect())
}

/// Copies `wanted` from `source`, and all that is missing below.
fn copy_with_all_below(wanted: &HashSet<Oid>, source: &Objects, target: &Objects, pack: &PackWriter<'_>) -> Result<()> {
    let mut queue: Vec<Oid> = wanted.iter().copied().collect();
    let mut seen: HashSet<Oid> = wanted.clone();
    while let Some(oid) = queue.pop() {
        let Ok(Some((kind, content))) = source.find(&oid) else { continue };
        pack.put(kind, &content)?;
        let below: Vec<Oid> = match kind {
            ObjectKind::Tree => {
                decode_tree(&content).map(|tree| tree.into_iter().map(|entry| entry.oid).collect()).unwrap_or_default()
            }
            ObjectKind::Commit => CommitData::decode(&content)
                .map(|commit| commit.parents.into_iter().chain([commit.tree]).collect())
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        queue.extend(below.into_iter().filter(|oid| !target.contains(oid) && seen.insert(*oid)));
    }
    Ok(())
}

/// Stores a file's content, or its chunk index, if that is one of the missing blobs.
fn offer_blobs(
    repo: &Repo,
    file: &std::fs::File,
    missing: &HashSet<Oid>,
    pack: &PackWriter<'_>,
    progress: &Progress,
) -> Result<()> {
    let size = file.metadata()?.len();
    let content = if size < repo.settings.threshold {
        read_all(file, size)?
    } else {
        let spec = repo.settings.chunker;
        cut_file(file, size, &holes(file, size)?, &spec, ChunkSink::Discard, repo.settings.n_threads, progress)?.encode()
    };
    if missing.contains(&object_id(ObjectKind::Blob, &content)?) {
        pack.blob(&content)?;
    }
    Ok(())
}

fn read_all(file: &std::fs::File, size: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::with_capacity(size as usize);
    file.take(size).read_to_end(&mut content)?;
    Ok(content)
}

/// Takes missing chunks from the sources; returns how many.
fn mend_chunks(repo: &Repo, sources: &[Source], progress: &Progress) -> Result<usize> {
    let mut n_found = 0;
    for _ in 0..MAX_ROUNDS {
        let (missing, specs) = missing_chunks(repo)?;
        if missing.is_empty() || sources.is_empty() {
            break;
        }
        let writer = repo.store.writer(WriteOptions { level: repo.settings.level })?;
        for source in sources {
            match source {
                Source::Store(store) => take_chunks(store, &missing, &writer)?,
                Source::Files(dir, name) => {
                    for_each_file(dir, name.as_deref(), &mut |file| offer_chunks(file, &missing, &specs, &writer, progress))?;
                }
                Source::Git(_) => (),
            }
        }
        let stats = writer.finish()?;
        n_found += stats.new_chunks as usize;
        if stats.new_chunks == 0 {
            break;
        }
    }
    Ok(n_found)
}

fn take_chunks(store: &Store, missing: &HashSet<ChunkId>, writer: &Writer) -> Result<()> {
    for id in missing {
        match store.read(id, MAX_CHUNK) {
            Ok(bytes) => drop(writer.put(*id, &bytes)?),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Cuts a file in every way that is in use, and stores the chunks that are missing.
fn offer_chunks(
    file: &std::fs::File,
    missing: &HashSet<ChunkId>,
    specs: &HashSet<String>,
    writer: &Writer,
    progress: &Progress,
) -> Result<()> {
    let size = file.metadata()?.len();
    for spec in specs {
        let spec: ChunkerSpec = spec.parse().map_err(|_| Error::new(Kind::Bug, "BUG: a chunker does not read its own name"))?;
        let sink = ChunkSink::Wanted { wanted: missing, writer };
        match cut_file(file, size, &holes(file, size)?, &spec, sink, 1, progress) {
            // It changes while we read it: another file may have the chunk.
            Err(error) if error.kind() == Kind::Conflict => (),
            other => drop(other?),
        }
    }
    Ok(())
}

/// Returns the chunks that large files lack, as far as their lists can be read, and the chunkers that cut these files.
fn missing_chunks(repo: &Repo) -> Result<(HashSet<ChunkId>, HashSet<String>)> {
    let (mut missing, mut specs) = (HashSet::new(), HashSet::new());
    for_each_index(repo, &mut |_, index| {
        let Ok(index) = index else { return Ok(()) };
        let before = missing.len();
        let walked = read::for_each_id(&repo.chunks, &index, &mut |id| {
            if !repo.store.contains(&id)? {
                missing.insert(id);
            }
            Ok(())
        });
        if missing.len() > before {
            specs.insert(index.chunker.to_string());
        }
        match walked {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => Ok(()),
            other => other,
        }
    })?;
    Ok((missing, specs))
}

/// Hands every regular file below `dir`, or the one that is named, to `take`; what cannot be read is passed over, and so is a repository.
fn for_each_file(dir: &Dir, name: Option<&[u8]>, take: &mut dyn FnMut(&std::fs::File) -> Result<()>) -> Result<()> {
    if let Some(name) = name {
        return take(&dir.open_file(name)?);
    }
    for entry in dir.entries()? {
        let kind = dir.stat(&entry.name)?.map(|stat| stat.kind);
        match kind {
            Some(FileKind::Dir) if entry.name != b".git" => {
                if let Ok(below) = dir.open_dir(&entry.name) {
                    for_each_file(&below, None, take)?;
                }
            }
            Some(FileKind::File) => {
                if let Ok(file) = dir.open_file(&entry.name) {
                    take(&file)?;
                }
            }
            _ => (),
        }
    }
    Ok(())
}
