//! `gdo adopt`

use std::sync::Arc;

use git_devops::error::{Error, Kind, Result};
use git_devops::git::Oid;
use git_devops::git::refs::check_ref_name;
use git_devops::host::dpkg::Owner;
use git_devops::host::rendering::Rendering;
use git_devops::host::{Host, adopt};
use git_devops::repo::scan::What;
use git_devops::repo::{Repo, releases};
use serde_json::json;

use super::changes::{letter, to_json};
use super::host::call;
use crate::exit;
use crate::places::GlobalArgs;
use crate::ui::{Ui, complain, json_path, shown, shown_path};

/// Tell how far this machine, which was not built from a type, is from it; with --begin, let it follow that type by convergence
///
/// Writes nothing without --begin, and no file of the machine with it. 'gdo converge' then makes right what differs.
#[derive(clap::Args)]
pub struct AdoptArgs {
    /// The type, whose accepted release counts; where no key is trusted, a commit
    #[arg(value_name = "TYPE|REV")]
    wanted: String,
    /// Let the history of this host begin there; what differs is drift from then on
    #[arg(long)]
    begin: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &AdoptArgs) -> Result<()> {
    let mut repo = global.repo()?;
    let (kind, commit) = wanted(&repo, &args.wanted)?;
    repo.laying = Arc::new(Rendering::of_tree(&repo, &repo.objects.commit(&commit)?.tree)?);
    let progress = ui.progress();
    progress.stage("comparing", 0, 0);
    let adoption = adopt::compare(&repo, commit, &progress)?;
    let warnings = ui.warnings();
    let n_same = adoption.n_owned.saturating_sub(adoption.changes.len());
    let [missing, content, metadata] = [What::Deleted, What::Content, What::Metadata].map(|what| adoption.count(what));
    let owner =
        |(path, owner): (&Vec<u8>, &Owner)| json!({"path": json_path(path), "is": owner.id(), "package": owner.package()});
    let packaged: Vec<_> = adoption.owners.iter().map(owner).collect();
    ui.json(|| {
        json!({"type": kind, "commit": commit.to_string(), "owned": adoption.n_owned, "same": n_same, "metadata": metadata, "content": content,
            "missing": missing, "unowned": adoption.n_unowned, "changes": to_json(&adoption.changes), "packaged": packaged, "begun": args.begin,
            "partial": adoption.is_partial, "warnings": warnings})
    })?;
    for change in &adoption.changes {
        let owner = adoption.owners.get(&change.path).map(|owner| {
            let of = owner.package().map(|package| format!(" of {}", shown(package.as_bytes()))).unwrap_or_default();
            format!(" ({}{of})", owner.id())
        });
        ui.line(format_args!("{} {}{}", letter(change.what), shown_path(&change.path), owner.unwrap_or_default()))?;
    }
    ui.note(format_args!(
        "of {} owned files and directories {n_same} are the same, {metadata} differ in metadata, {content} in content, {missing} are missing",
        adoption.n_owned
    ))?;
    ui.note(format_args!("not owned: {}, in directories that are owned as a whole", adoption.n_unowned))?;
    if adoption.is_partial {
        ui.exit_with(exit::PARTIAL);
    }
    if !args.begin {
        return ui.note("nothing was changed; 'gdo adopt --begin' lets this host follow the type");
    }
    let (mut host, aside) = Host::open_anew(&repo, call(&repo))?;
    if let Some(aside) = aside {
        let log = shown(aside.as_os_str().as_encoded_bytes());
        complain(format_args!(
            "warning: the log of this host is damaged, and lies in '{log}' now; what ran before is known from there alone"
        ));
    }
    host.adopt(&kind, commit, &progress)?;
    ui.note(format_args!("this host follows '{kind}' by convergence; 'gdo converge -n' tells what that would do"))
}

/// Returns the type and the commit that are meant.
fn wanted(repo: &Repo, wanted: &str) -> Result<(String, Oid)> {
    if releases::trust(repo)?.is_some() {
        let accepted = wanted.parse().and_then(|kind| releases::accepted(repo, &kind))?;
        let missing =
            || Error::new(Kind::NotFound, format!("no release of type '{wanted}' was accepted here yet; 'gdo fetch' gets them"));
        return Ok((wanted.to_owned(), accepted.ok_or_else(missing)?.commit));
    }
    let commit = repo.git.resolve(wanted)?;
    let remote = wanted.split_once('/').map(|(_, kind)| kind);
    // A commit can be named in ways in which no ref can.
    let is_ref = |name: String| Ok::<_, Error>(check_ref_name(&name).is_ok() && repo.git.read_ref(&name)?.is_some());
    let kind = match remote {
        Some(kind) if is_ref(format!("refs/remotes/{wanted}"))? => kind.to_owned(),
        _ if is_ref(format!("refs/heads/{wanted}"))? => wanted.to_owned(),
        _ => {
            let head = repo.git.head_ref()?.and_then(|head| head.strip_prefix("refs/heads/").map(str::to_owned));
            head.ok_or_else(|| Error::new(Kind::Conflict, "HEAD is on no branch, and the name of the commit tells no type"))?
        }
    };
    Ok((kind, commit))
}
