//! The only program of the embedded image `localhost/nodeagent-demo`: a page that shows what a container sees, a client of that
//! page for its sidecar, and the small tools that a look around needs where there is no shell. Knows nothing of the agent.

mod client;
mod facts;
mod grpc_health;
mod http;
mod page;
mod shared;
mod signals;
mod tools;

use std::process::ExitCode;

const HELP: &str = "\
Usage: demo COMMAND

  serve [--port 8080] [--quiet]       a page that shows what this container sees: text, HTML (browsers), JSON (/json);
                                      besides /healthz, /exists/FILE (200 or 503), /redirect?URL, /headers (into the log)
  grpc-health [--port 9090] FILE      gRPC's health service: SERVING while the file is there
  client [--url URL] [--every 1s]     asks for that page again and again and prints a line about it
  get URL                             one request; prints the answer
  count [--every 1s] [--into FILE]    prints 1, 2, 3 ..., or appends them to the file
  follow FILE                         prints the file, and for ever what is appended to it
  sleep [SECONDS]                     until then, or until a signal
  stubborn                            sleeps and pays no heed to SIGTERM
  stamp                               prints the time in nanoseconds, then sleeps
  exit N                              ends with status N
  echo TEXT...   cat   env   id   ps   mounts   addresses   tty
  namespace KIND                      its number, of mnt, pid, net ...
  read FILE      write FILE TEXT      append FILE TEXT    list DIRECTORY    own FILE
  await FILE                          waits until it is there
  fail-until FILE N                   ends with status N unless it is there; else sleeps
  mount-tmpfs DIRECTORY               mounts a tmpfs there (needs CAP_SYS_ADMIN)
  hostname [NAME]                     prints or sets it (setting needs CAP_SYS_ADMIN)
  hold-shm KEY VALUE                  leaves VALUE in System V shared memory
  read-shm KEY                        prints what is there
  kill PID [SIGNAL]                   sends a signal
  fork N                              makes N children that end at once and are left to PID 1
  spam BYTES [timed]                  writes numbered lines of 100 bytes, then how long that took in nanoseconds
  line BYTES                          writes one line of that length
  eat MEBIBYTES                       holds so much memory, then sleeps
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<ExitCode, String> {
    let Some((&command, rest)) = words.split_first() else {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    match command {
        "serve" => {
            let talk = if rest.contains(&"--quiet") { http::Talk::Errors } else { http::Talk::Requests };
            http::serve(option(rest, "--port")?.unwrap_or("8080"), talk)
        }
        "grpc-health" => {
            let file = rest.last().ok_or("FILE is missing; see demo help")?;
            grpc_health::serve(option(rest, "--port")?.unwrap_or("9090"), file)
        }
        "client" => client::run(option(rest, "--url")?.unwrap_or("http://127.0.0.1:8080/json"), every(rest)?),
        "get" => client::get(argument(rest, 0, "URL")?),
        "count" => tools::count(every(rest)?, option(rest, "--into")?),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        "exit" => {
            let code = argument(rest, 0, "a number")?.parse::<u8>().map_err(|e| format!("exit {}: {e}", rest[0]))?;
            return Ok(ExitCode::from(code));
        }
        _ => tools::run(command, rest),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The word after `name`, where `name` is given.
fn option<'a>(words: &[&'a str], name: &str) -> Result<Option<&'a str>, String> {
    let Some(at) = words.iter().position(|word| *word == name) else { return Ok(None) };
    words.get(at + 1).copied().map(Some).ok_or_else(|| format!("{name} needs a value"))
}

/// The word at `index`, which is `what`.
fn argument<'a>(words: &[&'a str], index: usize, what: &str) -> Result<&'a str, String> {
    words.get(index).copied().ok_or_else(|| format!("{what} is missing; see demo help"))
}

/// `--every`, one second if not given.
fn every(words: &[&str]) -> Result<std::time::Duration, String> {
    option(words, "--every")?.map_or(Ok(std::time::Duration::from_secs(1)), tools::duration)
}
