//! The program, under one of its names.

fn main() -> std::process::ExitCode {
    git_devops_cli::main()
}
