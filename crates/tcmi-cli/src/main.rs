use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tcmi_cli::args::{Args, ImageVerb, Verb};
use tcmi_cli::failure::{Failure, in_words};
use tcmi_cli::node::Node;
use tcmi_cli::{doctor, image, moves, show};
use tcmi_core::command::NodeRef;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Verb::Doctor = args.verb {
        let report = doctor::examine(&args.ctlfs);
        return print(&report.text(args.json), ExitCode::from(report.exit_status()));
    }
    let done = match &args.verb {
        Verb::Restart { file, truncate } => image::restart(file, *truncate),
        verb => {
            let text = match verb {
                Verb::Image(ImageVerb::Show { file }) => image::show(file, args.json),
                _ => run(&args),
            };
            text.map(|text| print(&text, ExitCode::SUCCESS))
        }
    };
    done.unwrap_or_else(|failure| {
        if args.json {
            println!("{}", show::failure(&failure));
        } else {
            eprintln!("tcmi: {failure}");
        }
        ExitCode::from(failure.exit_status())
    })
}

fn print(text: &str, status: ExitCode) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => status,
        // A reader that has seen enough, as `head` has.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => status,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Everything that a daemon has to answer.
fn run(args: &Args) -> Result<String, Failure> {
    let node = Node::open(&args.ctlfs)?;
    match &args.verb {
        Verb::Nodes => Ok(show::nodes(&node.peers()?, args.json)),
        Verb::Ps => Ok(show::processes(&node.processes()?, args.json)),
        Verb::Migrate { pid, node: target, tree } => {
            moves::migrate(&node, *pid, target, *tree)?;
            Ok(show::moved(*pid, Some(&name_of(&node, target)?), args.json))
        }
        Verb::Run { on, command } => Err(moves::run(&node, on, command)),
        Verb::Home { pid } => {
            moves::home(&node, *pid)?;
            Ok(show::moved(*pid, None, args.json))
        }
        Verb::Explain { pid, node: target, tree } => {
            let answer = node.explain(*pid, target.as_ref(), *tree).map_err(|error| {
                let text = format!("process {pid}: {}", in_words(&error));
                Failure::Refused { text, errno: error.raw_os_error() }
            })?;
            Ok(show::explanation(*pid, &answer, args.json))
        }
        Verb::Checkpoint { pid, file } => {
            let file = image::checkpoint(&node, *pid, file)?;
            Ok(show::saved(*pid, &file, args.json))
        }
        Verb::Doctor | Verb::Restart { .. } | Verb::Image(_) => unreachable!("they ask no daemon"),
        Verb::Key => Ok(show::key(&node.line("node/name")?, &node.line("node/id")?, args.json)),
    }
}

/// People know nodes by name; a number is shown as it was given if its node has left since.
fn name_of(node: &Node, target: &NodeRef) -> Result<String, Failure> {
    let NodeRef::Number(number) = target else { return Ok(target.to_string()) };
    let peers = node.peers()?;
    let peer = peers.into_iter().find(|peer| peer.number == *number);
    Ok(peer.map_or_else(|| target.to_string(), |peer| peer.name))
}
