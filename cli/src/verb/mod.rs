//! The verbs, one file each.

use git_devops::error::Result;

use crate::places::GlobalArgs;
use crate::ui::Ui;

mod add;
mod adopt;
mod attributes;
mod cat;
mod changes;
mod check;
mod chunk;
mod clone;
mod commit;
mod completions;
mod converge;
mod diff;
mod drop;
mod env;
mod exec;
mod fetch;
mod fix;
mod fleet;
mod gc;
mod git;
mod hand_over_args;
mod host;
mod init;
mod log;
mod ls;
mod maintain;
mod man;
mod merge;
mod merge_metadata;
mod promise;
mod proof;
mod release;
mod remote;
mod restore;
mod rm;
mod rollback;
mod scan_args;
mod schedule;
mod secret;
mod serve;
mod show;
mod snapshot;
mod status;
mod sync;
mod tour;
mod trial;
mod trust;
mod types;
mod up;
mod verify;
mod whereis;

/// What the program can do.
#[derive(clap::Subcommand)]
pub enum Verb {
    Init(init::InitArgs),
    Add(add::AddArgs),
    Rm(rm::RmArgs),
    Commit(commit::CommitArgs),
    Snapshot(snapshot::SnapshotArgs),
    Status(status::StatusArgs),
    Diff(diff::DiffArgs),
    Log(log::LogArgs),
    Show(show::ShowArgs),
    Ls(ls::LsArgs),
    Cat(cat::CatArgs),
    Restore(restore::RestoreArgs),
    Check(check::CheckArgs),
    Clone(clone::CloneArgs),
    Fetch(fetch::FetchArgs),
    Get(fetch::GetArgs),
    Sync(sync::SyncArgs),
    Whereis(whereis::WhereisArgs),
    Drop(drop::DropArgs),
    Remote(remote::RemoteArgs),
    Serve(serve::ServeArgs),
    Release(release::ReleaseArgs),
    Verify(verify::VerifyArgs),
    Trust(trust::TrustArgs),
    Snap(exec::SnapArgs),
    Exec(exec::ExecArgs),
    Handler(exec::HandlerArgs),
    Reboot(exec::RebootArgs),
    Ci(exec::CiArgs),
    Abort(exec::AbortArgs),
    Branch(types::BranchArgs),
    Fork(types::ForkArgs),
    Switch(types::SwitchArgs),
    Merge(merge::MergeArgs),
    Revert(merge::RevertArgs),
    Up(up::UpArgs),
    Confirm(trial::ConfirmArgs),
    Resume(up::ResumeArgs),
    Skip(up::SkipArgs),
    Adopt(adopt::AdoptArgs),
    Converge(converge::ConvergeArgs),
    Promise(promise::PromiseArgs),
    Fix(fix::FixArgs),
    Schedule(schedule::ScheduleArgs),
    Rollback(rollback::RollbackArgs),
    Fingerprint(proof::FingerprintArgs),
    Compare(proof::CompareArgs),
    Fleet(fleet::FleetArgs),
    Hold(rollback::HoldArgs),
    Unhold(rollback::UnholdArgs),
    Gc(gc::GcArgs),
    Maintain(maintain::MaintainArgs),
    Attributes(attributes::AttributesArgs),
    Env(env::EnvArgs),
    Secret(secret::SecretArgs),
    Git(git::GitArgs),
    Tour(tour::TourArgs),
    Chunk(chunk::ChunkArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    #[command(hide = true)]
    MergeMetadata(merge_metadata::MergeMetadataArgs),
}

/// Runs a verb.
pub fn run(verb: &Verb, global: &GlobalArgs, ui: &mut Ui) -> Result<()> {
    match verb {
        Verb::Init(args) => init::run(ui, global, args),
        Verb::Add(args) => add::run(ui, global, args),
        Verb::Rm(args) => rm::run(ui, global, args),
        Verb::Commit(args) => commit::run(ui, global, args),
        Verb::Snapshot(args) => snapshot::run(ui, global, args),
        Verb::Status(args) => status::run(ui, global, args),
        Verb::Diff(args) => diff::run(ui, global, args),
        Verb::Log(args) => log::run(ui, global, args),
        Verb::Show(args) => show::run(ui, global, args),
        Verb::Ls(args) => ls::run(ui, global, args),
        Verb::Cat(args) => cat::run(ui, global, args),
        Verb::Restore(args) => restore::run(ui, global, args),
        Verb::Check(args) => check::run(ui, global, args),
        Verb::Clone(args) => clone::run(ui, global, args),
        Verb::Fetch(args) => fetch::run_fetch(ui, global, args),
        Verb::Get(args) => fetch::run_get(ui, global, args),
        Verb::Sync(args) => sync::run(ui, global, args),
        Verb::Whereis(args) => whereis::run(ui, global, args),
        Verb::Drop(args) => drop::run(ui, global, args),
        Verb::Remote(args) => remote::run(ui, global, args),
        Verb::Serve(args) => serve::run(ui, global, args),
        Verb::Release(args) => release::run(ui, global, args),
        Verb::Verify(args) => verify::run(ui, global, args),
        Verb::Trust(args) => trust::run(ui, global, args),
        Verb::Snap(args) => exec::run_snap(ui, global, args),
        Verb::Exec(args) => exec::run_exec(ui, global, args),
        Verb::Handler(args) => exec::run_handler(ui, global, args),
        Verb::Reboot(args) => exec::run_reboot(ui, global, args),
        Verb::Ci(args) => exec::run_ci(ui, global, args),
        Verb::Abort(args) => exec::run_abort(ui, global, args),
        Verb::Branch(args) => types::run_branch(ui, global, args),
        Verb::Fork(args) => types::run_fork(ui, global, args),
        Verb::Switch(args) => types::run_switch(ui, global, args),
        Verb::Merge(args) => merge::run_merge(ui, global, args),
        Verb::Revert(args) => merge::run_revert(ui, global, args),
        Verb::Up(args) => up::run_up(ui, global, args),
        Verb::Confirm(args) => trial::run_confirm(ui, global, args),
        Verb::Resume(args) => up::run_resume(ui, global, args),
        Verb::Skip(args) => up::run_skip(ui, global, args),
        Verb::Adopt(args) => adopt::run(ui, global, args),
        Verb::Converge(args) => converge::run(ui, global, args),
        Verb::Promise(args) => promise::run(ui, global, args),
        Verb::Fix(args) => fix::run(ui, global, args),
        Verb::Fingerprint(args) => proof::run_fingerprint(ui, global, args),
        Verb::Compare(args) => proof::run_compare(ui, global, args),
        Verb::Fleet(args) => fleet::run(ui, global, args),
        Verb::Schedule(args) => schedule::run(ui, global, args),
        Verb::Rollback(args) => rollback::run_rollback(ui, global, args),
        Verb::Hold(args) => rollback::run_hold(ui, global, args),
        Verb::Unhold(args) => rollback::run_unhold(ui, global, args),
        Verb::Gc(args) => gc::run(ui, global, args),
        Verb::Maintain(args) => maintain::run(ui, global, args),
        Verb::Attributes(args) => attributes::run(ui, global, args),
        Verb::Env(args) => env::run(ui, global, args),
        Verb::Secret(args) => secret::run(ui, global, args),
        Verb::Git(args) => git::run(ui, global, args),
        Verb::Tour(args) => tour::run(ui, args),
        Verb::Chunk(args) => chunk::run(ui, args),
        Verb::Completions(args) => completions::run(ui, args),
        Verb::Man(args) => man::run(ui, args),
        Verb::MergeMetadata(args) => merge_metadata::run(ui, args),
    }
}
