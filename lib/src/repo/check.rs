//! Verifies what is stored: git's objects, the chunk packs, and that every large file has all of its chunks.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Mutex;

use super::verified::VerifiedNote;
use super::{Policy, Repo, enrolled, holders, remotes};
use crate::durable;
use crate::error::{Error, Kind, Result};
use crate::file::index::ChunkIndex;
use crate::file::read;
use crate::git::check::Role;
use crate::git::roots::Root;
use crate::git::{Deviation, Index, Oid, mirror};
use crate::id::{ChunkId, PackId};
use crate::journal::{HostLog, LOG_REMEDY};
use crate::progress::Progress;
use crate::store;
use crate::threads;

const CHUNK_REMEDY: &str =
    "'gdo check --repair --from SOURCE' takes the chunk from another store, or from the file itself if it is still there";

/// Something that is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file or object concerned.
    pub what: String,
    /// Where in it, in bytes, if that is known.
    pub offset: Option<u64>,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// What is read, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Git's objects, and what is needed to know that every chunk is there.
    Structure,
    /// Every stored byte; what is the same as when it was verified is not unpacked again.
    Data,
    /// Every stored byte, and all of it unpacked.
    Afresh,
}

/// What a check brought.
#[derive(Debug, Default)]
pub struct Checked {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Bytes of packs that were the same as when they were verified.
    pub n_same: u64,
    /// Bytes of packs that were verified.
    pub n_fresh: u64,
}

/// Verifies the repository and its store.
///
/// An error means that the check itself could not be done; what it found is in the list.
pub fn check(repo: &Repo, depth: Depth, progress: &Progress) -> Result<Checked> {
    let noted = VerifiedNote::read(&repo.places.state);
    let before = if depth == Depth::Afresh { VerifiedNote::default() } else { noted.clone() };
    let mut findings = Vec::new();
    check_places(repo, &mut findings)?;
    let roots = roots(repo);
    repo.forget_index();
    progress.stage("checking git objects", 0, 0);
    let verified = repo.git.check_files(&ChunkIndex::is_index, &before.git_packs, roots.as_deref().unwrap_or_default())?;
    let chunks = check_chunks(repo, depth, &before.chunk_packs, progress)?;
    progress.stage("checking large files", 0, 0);
    let mut files = Vec::new();
    let looked = check_large_files(repo, verified.wanted.clone(), &mut files, progress);
    let is_plain = verified.wanted.is_some() && !has_other_work_trees(repo);
    let is_whole = verified.is_whole && roots.is_some();
    let complaints = match (is_plain, is_whole) {
        (true, true) => Vec::new(),
        (true, false) => fsck(repo, Fsck::Links, progress)?,
        (false, _) => fsck(repo, Fsck::All, progress)?,
    };
    for found in verified.damaged.into_iter().filter(|found| found.role != Role::LostIndex || !complaints.is_empty()) {
        let (what, remedy) = (found.path.display().to_string(), found.role.remedy().into());
        findings.push(Finding { what, offset: found.offset, problem: found.problem, remedy });
    }
    findings.extend(complaints.into_iter().chain(chunks.findings).chain(files));
    match looked {
        // An object that git lists and nobody finds: what was found already says why.
        Err(error) if error.kind() == Kind::Locked && !findings.is_empty() => {}
        other => other?,
    }
    let now = VerifiedNote {
        chunk_packs: if depth == Depth::Structure { before.chunk_packs } else { chunks.sound },
        git_packs: if is_plain { verified.sound } else { before.git_packs },
    };
    if now != noted {
        now.write(&repo.places.state);
    }
    Ok(Checked { findings, n_same: verified.n_same + chunks.n_same, n_fresh: verified.n_fresh + chunks.n_fresh })
}

/// Returns the objects that have to be here: what HEAD, refs, their logs and git's index lead to; `None` if only git can say which these are.
fn roots(repo: &Repo) -> Option<Vec<Root>> {
    let mut roots = repo.git.roots()?;
    roots.extend(repo.with_index(|index| Ok(index.roots())).ok()??);
    Some(roots)
}

/// Says whether there may be indexes that name what is no file: git looks at that only when it verifies all objects.
fn has_other_work_trees(repo: &Repo) -> bool {
    durable::is_there(&repo.git.git_dir().join("worktrees"))
}

/// What a look at chunks brought.
#[derive(Default)]
struct Chunks {
    findings: Vec<Finding>,
    sound: BTreeSet<PackId>,
    n_same: u64,
    n_fresh: u64,
}

impl Chunks {
    /// Takes what a look at a store brought; `remedy` is for all of it, or each finding has its own.
    fn take(&mut self, checked: store::Checked, remedy: Option<&str>) {
        self.sound.extend(checked.sound);
        self.n_same += checked.n_same;
        self.n_fresh += checked.n_fresh;
        self.findings.extend(checked.findings.into_iter().map(|found| Finding {
            what: found.file.display().to_string(),
            offset: found.offset,
            problem: match found.chunk {
                Some(chunk) => format!("{} (chunk {chunk})", found.problem),
                None => found.problem,
            },
            remedy: remedy.unwrap_or(found.remedy).into(),
        }));
    }
}

/// Verifies the chunks of the store, those that lie in files of this host, and the cache, after packs were found `sound`.
fn check_chunks(repo: &Repo, depth: Depth, sound: &BTreeSet<PackId>, progress: &Progress) -> Result<Chunks> {
    let read_data = depth != Depth::Structure;
    let mut chunks = Chunks::default();
    progress.stage("checking the chunk store", 0, 0);
    chunks.take(repo.store.check_after(sound, read_data, progress)?, None);
    if let Some(references) = repo.chunks.local().references().store()? {
        let remedy =
            "put the file back as it was, or 'gdo get' its content from another host; 'gdo snapshot' takes it as it is now";
        chunks.take(references.check_after(sound, read_data, progress)?, Some(remedy));
    }
    if let Some(cache) = repo.chunks.local().cache().store() {
        let remedy = "'gdo check --repair' empties the cache; nothing is lost with it";
        chunks.take(cache.check_after(sound, read_data, progress)?, Some(remedy));
    }
    Ok(chunks)
}

/// Looks at what stands around the objects: HEAD, configuration, refs and their logs, git's index, the store's list of repositories.
fn check_places(repo: &Repo, findings: &mut Vec<Finding>) -> Result<()> {
    let witnessed = &repo.witnessed;
    let deviations = witnessed.healed.iter().chain(&witnessed.open).cloned();
    for found in deviations.chain(mirror::examine_logs(repo.git.git_dir())?) {
        let Deviation { path, offset, problem, remedy, .. } = found;
        findings.push(Finding { what: path.display().to_string(), offset, problem, remedy });
    }
    let path = repo.index_path();
    let problem = match repo.index() {
        // It is kept for who asks what it leads to.
        Ok(_) if durable::is_there(&path) => None,
        _ => index_problem(repo, &path)?,
    };
    findings.extend(problem.map(|problem| Finding {
        what: path.display().to_string(),
        offset: None,
        problem,
        remedy: "'gdo check --repair' makes it anew from HEAD; what was staged and not committed has to be added again".into(),
    }));
    let own = enrolled::canonical(&repo.places.git_dir)?;
    let list = enrolled::list(&repo.places.store);
    let problem = match list {
        Ok(list) if !list.contains(&own) => {
            Some("this repository does not stand in it, so that another one's gc would remove its chunks".to_owned())
        }
        Ok(_) if !enrolled::ends_well(&repo.places.store)? => Some("its last line is cut short".to_owned()),
        Ok(list) => list
            .iter()
            .find(|git_dir| !durable::is_dir(&git_dir.join("objects")))
            .map(|git_dir| format!("it names '{}', where there is no repository", git_dir.display())),
        Err(error) => Some(format!("{error:#}")),
    };
    findings.extend(problem.map(|problem| Finding {
        what: enrolled::path(&repo.places.store).display().to_string(),
        offset: None,
        problem,
        remedy: "set it right by hand: one absolute path in each line, of each repository that uses the store; until then 'gdo gc' removes nothing. 'gdo init' adds the repository that it is run for".into(),
    }));
    findings.extend(HostLog::examine(&repo.places.state)?.map(|(path, offset, problem)| Finding {
        what: path.display().to_string(),
        offset: Some(offset),
        problem: format!("{problem}, and then nobody knows what ran on this host"),
        remedy: LOG_REMEDY.into(),
    }));
    let (log, output) = (repo.places.state.join("log"), repo.places.state.join("output"));
    if !durable::is_there(&log) && durable::is_dir(&output) && !durable::list(&output)?.is_empty() {
        let problem =
            "it is missing, though what commands of this host said is there; nobody knows what ran on this host".to_owned();
        findings.push(Finding { what: log.display().to_string(), offset: None, problem, remedy: LOG_REMEDY.into() });
    }
    if let Err(error) = holders::look(repo) {
        findings.push(Finding {
            what: repo.store.dir().join("promises").display().to_string(),
            offset: None,
            problem: format!("{error:#}"),
            remedy: "'gdo check --repair' makes one that promises enough".into(),
        });
    }
    Ok(())
}

/// Returns what is wrong with git's index at `path`.
fn index_problem(repo: &Repo, path: &Path) -> Result<Option<String>> {
    Ok(match Index::read(path) {
        Err(error) if error.kind() == Kind::Corrupt => Some(format!("{error:#}")),
        Err(error) => return Err(error),
        Ok(index) if repo.is_index_stale(&index) => {
            Some("this is not the index that was written last, as 'index-checksum' has it, and nobody wrote it".to_owned())
        }
        Ok(_) if repo.is_index_lost() => Some("it is missing, though it was written once".to_owned()),
        Ok(_) => None,
    })
}

/// So often git is asked again when it complains.
const FSCK_AGAIN: usize = 2;

/// What git is asked to verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fsck {
    /// That all is there which refs, their logs and git's index lead to; and what git has beside the objects to find them faster.
    Links,
    /// The objects, too.
    All,
}

/// Lets git verify what it has; returns what it said again and again.
fn fsck(repo: &Repo, what: Fsck, progress: &Progress) -> Result<Vec<Finding>> {
    progress.stage("asking git about its objects", 0, 0);
    let mut args = vec!["fsck", "--strict", "--no-dangling", "--no-progress"];
    args.extend((what == Fsck::Links).then_some("--connectivity-only"));
    let look = || -> Result<Vec<String>> {
        let output = repo.git.output(&args, b"")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<String> = said.lines().filter(|line| !line.starts_with("notice:")).map(str::to_owned).collect();
        let is_silent = lines.is_empty() && !output.status.success();
        Ok(if is_silent { vec!["failed without a word".to_owned()] } else { lines })
    };
    let git_dir = repo.places.git_dir.display().to_string();
    let mut complaints = look()?;
    // Git lists the objects first and follows refs and index later, so that what others write meanwhile seems to be missing: what counts is said again.
    for _ in 0..FSCK_AGAIN {
        if !complaints.is_empty() {
            let again = look()?;
            complaints.retain(|line| again.contains(line));
        }
    }
    repo.objects.refresh();
    // Also each time anew, where packs come and go faster than git reads them: what it misses and we have is not missing.
    complaints.retain(|line| !is_about_absence(line) || oids_in(line).any(|oid| !matches!(repo.objects.find(&oid), Ok(Some(_)))));
    let mut findings = Vec::new();
    for line in complaints {
        let log = line.split_once(": invalid reflog entry ").and_then(|(told, _)| told.strip_prefix("error: "));
        let (what, remedy) = match log {
            Some(name) => {
                let remedy = "nothing needs that line but 'git reflog'; 'gdo check --repair' cuts it out, '--from SOURCE' takes the object from another copy";
                (format!("{git_dir}/logs/{name}"), remedy)
            }
            None => {
                let remedy = "'gdo check --repair --from SOURCE' takes the object from another copy; or snapshot again: what the work tree still has is \
                              stored anew";
                (path_in(&line, &git_dir).unwrap_or_else(|| git_dir.clone()), remedy)
            }
        };
        findings.push(Finding { what, offset: None, problem: format!("git fsck: {line}"), remedy: remedy.into() });
    }
    Ok(findings)
}

/// Says whether a line of git's is about objects that it did not find, and nothing else.
fn is_about_absence(line: &str) -> bool {
    ["invalid reflog entry ", "missing ", "broken link from ", "to "].iter().any(|words| {
        let line = line.strip_prefix("error: ").unwrap_or(line);
        line.trim_start().starts_with(words) || line.contains(&format!(": {words}"))
    }) && oids_in(line).next().is_some()
}

fn oids_in(line: &str) -> impl Iterator<Item = Oid> + '_ {
    let words = line.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 40);
    words.filter_map(|word| Oid::from_hex(word.as_bytes()).ok())
}

/// Returns the file below `git_dir` that a line of git's names.
fn path_in(line: &str, git_dir: &str) -> Option<String> {
    let at = line.find(&format!("{git_dir}/"))?;
    let rest = &line[at..];
    let end = rest[git_dir.len()..].find([' ', '\'', ')', ':', ',']).map_or(rest.len(), |end| git_dir.len() + end);
    Some(rest[..end].to_owned())
}

/// Verifies that all chunks of all large files in all commits are here, or with a holder that told so. Of what only the branches of other hosts
/// have they need not be anywhere. Which blobs are chunk indexes may be `known`.
fn check_large_files(repo: &Repo, known: Option<Vec<Oid>>, findings: &mut Vec<Finding>, progress: &Progress) -> Result<()> {
    repo.objects.refresh();
    // What somebody's gc removed since it was seen is of no use to anybody.
    let known = known.map(|known| known.into_iter().filter(|oid| repo.objects.contains(oid)).collect());
    let blobs = match known.map_or_else(|| perhaps_indexes(repo), Ok) {
        Ok(blobs) => blobs,
        Err(error) => {
            // Git itself stops at some damage, which was named above.
            let (what, problem) =
                (repo.places.git_dir.display().to_string(), format!("not all objects can be listed: {error:#}"));
            let remedy = "'gdo check --repair', with '--from SOURCE' if there is another copy; then check again".into();
            findings.push(Finding { what, offset: None, problem, remedy });
            return Ok(());
        }
    };
    let mut search = Search::of(repo)?;
    // Chunk indexes that could not be read to their end, and why.
    let mut unread = Vec::new();
    for_each_index_of(repo, blobs, &mut |oid, decoded| {
        progress.add(1, 0);
        let index = match decoded {
            Ok(index) => index,
            Err(error) => {
                findings.push(Finding {
                    what: format!("git object {oid}"),
                    offset: None,
                    problem: format!("{error:#}"),
                    remedy: "'gdo check --repair --from SOURCE', or snapshot the file again if the work tree still has it".into(),
                });
                return Ok(());
            }
        };
        match read::for_each_id(&repo.chunks, &index, &mut |id| search.want(id, oid)) {
            Err(error) if is_damage(&error) => unread.push((oid, error)),
            other => other?,
        }
        Ok(())
    })?;
    search.look()?;
    // A list that is missing is among the chunks.
    unread.retain(|(oid, error)| error.kind() != Kind::NotFound || !search.with_gaps.contains(oid));
    findings.extend(unread.into_iter().map(|(oid, error)| Finding {
        what: format!("git object {oid}"),
        offset: None,
        problem: format!("{error:#}"),
        remedy: CHUNK_REMEDY.into(),
    }));
    findings.extend(search.failure.map(|error| Finding {
        what: repo.store.dir().display().to_string(),
        offset: None,
        problem: format!("not all chunks could be looked for: {error:#}"),
        remedy: "check again; if it is said again, 'gdo check --repair'".into(),
    }));
    let ids: Vec<ChunkId> = search.missing.keys().copied().collect();
    let is_elsewhere = holders::hold(repo, &ids)?;
    let lost = search.missing.into_iter().zip(is_elsewhere).filter(|(_, is_elsewhere)| !is_elsewhere);
    findings.extend(lost.map(|((id, oid), _)| Finding {
        what: format!("git object {oid}"),
        offset: None,
        problem: format!("chunk {id} of this chunk index is not in the store, and no other holder tells that it has it"),
        remedy: CHUNK_REMEDY.into(),
    }));
    Ok(())
}

/// Says whether something stored is not there or not right.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::NotFound | Kind::Corrupt)
}

/// Chunks that are looked for at once.
const AT_ONCE: usize = if cfg!(test) { 16 } else { 1 << 16 };

/// What large files need of chunks, whichever file it is: many are looked for at once, so that a block of the store's index is read once for all of them.
struct Search<'a> {
    repo: &'a Repo,
    others: OthersFiles<'a>,
    /// Chunks that are still to be looked for, each with a chunk index that names it.
    wanted: Vec<(ChunkId, Oid)>,
    /// Chunks that have to be here and are not, each with a chunk index that names it.
    missing: BTreeMap<ChunkId, Oid>,
    /// The chunk indexes that name what is not here, whether it has to be or not.
    with_gaps: HashSet<Oid>,
    /// Why it is not known of some chunks whether they are here.
    failure: Option<Error>,
}

impl<'a> Search<'a> {
    fn of(repo: &'a Repo) -> Result<Self> {
        let (wanted, missing, with_gaps) = Default::default();
        Ok(Self { repo, others: OthersFiles::of(repo)?, wanted, missing, with_gaps, failure: None })
    }

    fn want(&mut self, id: ChunkId, oid: Oid) -> Result<()> {
        self.wanted.push((id, oid));
        if self.wanted.len() < AT_ONCE { Ok(()) } else { self.look() }
    }

    /// Looks for all that is wanted so far.
    fn look(&mut self) -> Result<()> {
        let wanted = std::mem::take(&mut self.wanted);
        let lacking = match self.repo.chunks.local().lacking(wanted.iter().map(|(id, _)| *id).collect()) {
            Err(error) if is_damage(&error) => {
                self.failure.get_or_insert(error);
                return Ok(());
            }
            other => other?,
        };
        for (id, oid) in wanted.into_iter().filter(|(id, _)| lacking.binary_search(id).is_ok()) {
            self.with_gaps.insert(oid);
            // Other hosts have what a host that is no holder does not.
            if self.repo.settings.policy == Policy::Holder && !self.others.has(&oid) {
                self.missing.entry(id).or_insert(oid);
            }
        }
        Ok(())
    }
}

/// The files that this host knows from other hosts only: their branches are fetched without the chunks.
struct OthersFiles<'a> {
    repo: &'a Repo,
    is_alone: bool,
    /// What the own branches, tags and git's index need; `None` if git cannot tell. It is asked when something is missing.
    own: OnceCell<Option<HashSet<Oid>>>,
}

impl<'a> OthersFiles<'a> {
    fn of(repo: &'a Repo) -> Result<Self> {
        Ok(Self { repo, is_alone: remotes::list(repo)?.is_empty(), own: OnceCell::new() })
    }

    /// Says whether nothing of this host's own needs the blob; where git cannot tell, everything counts as its own.
    fn has(&self, blob: &Oid) -> bool {
        !self.is_alone && self.own.get_or_init(|| self.own()).as_ref().is_some_and(|own| !own.contains(blob))
    }

    fn own(&self) -> Option<HashSet<Oid>> {
        let what = [
            "rev-list",
            "--objects",
            "--no-object-names",
            "--indexed-objects",
            "--exclude=refs/remotes/*",
            "--exclude=refs/devops/in-flight*/*",
            "--all",
        ];
        let listed = self.repo.git.run(&what).ok()?;
        listed.split(|&b| b == b'\n').filter(|line| !line.is_empty()).map(|hex| Oid::from_hex(hex).ok()).collect()
    }
}

/// Hands every chunk index that the repository has to `take`: those of all commits, also of what nothing refers to (any more, or yet).
pub(super) fn for_each_index(repo: &Repo, take: &mut dyn FnMut(Oid, Result<ChunkIndex>) -> Result<()>) -> Result<()> {
    for_each_index_of(repo, perhaps_indexes(repo)?, take)
}

/// Does so with those among `blobs`.
fn for_each_index_of(repo: &Repo, blobs: Vec<Oid>, take: &mut dyn FnMut(Oid, Result<ChunkIndex>) -> Result<()>) -> Result<()> {
    for oid in blobs {
        match repo.objects.blob(&oid) {
            Ok(blob) if ChunkIndex::is_index(&blob) => take(oid, ChunkIndex::decode(&blob))?,
            Ok(_) => (),
            // It was listed a moment ago.
            Err(error) if error.kind() == Kind::NotFound => {
                return Err(error.with_kind(Kind::Locked).wrap("somebody's gc is removing objects; try again when it is done"));
            }
            Err(error) => take(oid, Err(error))?,
        }
    }
    Ok(())
}

/// Returns all blobs of the repository but those that were read, by all threads, and are no chunk indexes.
fn perhaps_indexes(repo: &Repo) -> Result<Vec<Oid>> {
    let blobs = repo.git.all_blobs()?;
    // Of what is long there is one in memory at a time, later.
    let is_short = |oid: &Oid| matches!(repo.objects.blob_size(oid), Ok(Some(size)) if size <= MAX_AT_ONCE);
    let is_other = |oid: &Oid| is_short(oid) && repo.objects.blob(oid).is_ok_and(|blob| !ChunkIndex::is_index(&blob));
    let handfuls: Vec<&[Oid]> = blobs.chunks(HANDFUL).collect();
    let found = Mutex::new(Vec::new());
    let look = |handful: &&[Oid], (): &mut ()| {
        let perhaps: Vec<Oid> = handful.iter().filter(|oid| !is_other(oid)).copied().collect();
        found.lock().expect("BUG: a thread panicked while it read blobs").extend(perhaps);
        Ok(())
    };
    threads::each(usize::MAX, &handfuls, || Ok(()), look)?;
    Ok(found.into_inner().expect("BUG: a thread panicked while it read blobs"))
}

/// Bytes of a blob that a thread reads beside others. Git takes no base for a delta that is more than 32 times as long.
const MAX_AT_ONCE: u64 = 256 << 10;

/// Blobs that a thread takes at a time; they mostly lie side by side.
const HANDFUL: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::index::{Entry, MAGIC};
    use crate::git::pack::PackWriter;
    use crate::id::FileHash;
    use crate::repo::Places;
    use crate::store::WriteOptions;

    #[test]
    fn of_many_blobs_those_are_left_out_that_are_certainly_no_chunk_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_directory(dir.path());
        Repo::init(&places, "main").unwrap();
        let repo = Repo::open(places).unwrap();
        let pack = PackWriter::new(&repo.places.git_dir, &repo.objects).unwrap();
        let mut expected = BTreeSet::new();
        for at in 0..5 * HANDFUL + 1 {
            let (content, is_perhaps) = match at % 100 {
                7 => ([MAGIC, at.to_string().as_bytes()].concat(), true),
                8 => (vec![at as u8; MAX_AT_ONCE as usize + at % 300], at % 300 > 0),
                _ => (format!("{at}\n").into_bytes(), false),
            };
            let oid = pack.blob(&content).unwrap();
            expected.extend(is_perhaps.then_some(oid));
        }
        pack.finish().unwrap().unwrap().release().unwrap();
        // One that is another than its name says.
        let loose = |hex: &str| repo.places.git_dir.join("objects").join(&hex[..2]).join(&hex[2..]);
        let sound = String::from_utf8(repo.git.run_with_input(&["hash-object", "-w", "--stdin"], b"sound").unwrap()).unwrap();
        let damaged = "11".repeat(20);
        std::fs::create_dir_all(loose(&damaged).parent().unwrap()).unwrap();
        std::fs::copy(loose(sound.trim()), loose(&damaged)).unwrap();
        expected.insert(Oid::from_hex(damaged.as_bytes()).unwrap());
        assert!(expected.len() > 20);
        assert_eq!(perhaps_indexes(&repo).unwrap().into_iter().collect::<BTreeSet<_>>(), expected);
    }

    #[test]
    fn each_chunk_of_each_file_is_looked_for_however_many_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_directory(dir.path());
        Repo::init(&places, "main").unwrap();
        let repo = Repo::open(places).unwrap();
        let plain = |at: usize| (at as u32).to_be_bytes();
        let id = |at| ChunkId::of(&plain(at));
        let n_chunks = 4 * AT_ONCE;
        let lacking = [0, AT_ONCE - 1, AT_ONCE, 3 * AT_ONCE + 1, n_chunks - 2, n_chunks - 1];
        let writer = repo.store.writer(WriteOptions::default()).unwrap();
        let present = (0..n_chunks).filter(|at| !lacking.contains(at));
        present.for_each(|at| _ = writer.put(id(at), &plain(at)).unwrap());
        writer.finish().unwrap();
        // One longer than what is looked for at once, a whole one, and one that is looked for together with it.
        let files = [0..3 * AT_ONCE + 2, 3 * AT_ONCE + 2..3 * AT_ONCE + 5, n_chunks - 4..n_chunks];
        let pack = PackWriter::new(&repo.places.git_dir, &repo.objects).unwrap();
        let mut expected = BTreeSet::new();
        for file in files {
            let content: Vec<u8> = file.clone().flat_map(plain).collect();
            let index = ChunkIndex {
                size: content.len() as u64,
                hash: FileHash::of(&content),
                has_holes: false,
                chunker: "fixed:size=64".parse().unwrap(),
                entries: file.clone().map(|at| Entry::Chunk { id: id(at), len: 4 }).collect(),
            };
            let oid = pack.blob(&index.encode()).unwrap();
            let of_file = lacking.into_iter().filter(|at| file.contains(at));
            expected.extend(of_file.map(|at| (format!("git object {oid}"), id(at).to_string())));
        }
        assert_eq!(expected.len(), lacking.len());
        pack.finish().unwrap().unwrap().release().unwrap();
        let mut findings = Vec::new();
        check_large_files(&repo, None, &mut findings, &Progress::default()).unwrap();
        let chunk = |finding: &Finding| finding.problem.split_whitespace().nth(1).unwrap().to_owned();
        let told: Vec<_> = findings.iter().map(|finding| (finding.what.clone(), chunk(finding))).collect();
        assert!(told.len() == expected.len() && told.into_iter().collect::<BTreeSet<_>>() == expected, "{findings:?}");
    }

    #[test]
    fn what_git_says_of_objects_that_it_misses_is_told_from_damage() {
        let oid = "cf87fe2707e9ba676acfcddf2e27ef4b3a6f6d11";
        for (line, is_absence) in [
            ("error: HEAD: invalid reflog entry OID", true),
            ("error: refs/heads/main: invalid reflog entry OID", true),
            ("missing blob OID", true),
            ("broken link from    tree OID", true),
            ("              to    blob OID", true),
            ("error: OID: object corrupt or missing: .git/objects/cf/87", false),
            ("error: sha1 mismatch for .git/objects/cf/87 (expected OID)", false),
            ("error in tree OID: treeNotSorted: not properly sorted", false),
            ("error: refs/heads/main: invalid sha1 pointer 0000", false),
            ("missing blob", false),
        ] {
            let line = line.replace("OID", oid);
            assert_eq!(is_about_absence(&line), is_absence, "{line}");
        }
    }
}
