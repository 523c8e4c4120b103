//! rlimits and the OOM score: the nearest that the machine permits, never a reason not to start.

use podholder::protocol::{Fault, Process, Stage};
use podholder::sys;

use crate::fault::kernel;

fn not_permitted(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// What a USER namespace has no right to: raising hard limits, lowering the OOM score.
pub fn before_user_namespace(process: &Process) -> Result<(), Fault> {
    // The holder's own is for the holder alone.
    let score = process.oom_score_adj.unwrap_or(0);
    match std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        // Lower than this process's own isn't for us: it stays as it is.
        Err(e) if !not_permitted(&e) => return Err(kernel(Stage::Limits, "oom_score_adj", e)),
        _ => {}
    }
    for (resource, _, hard) in &process.rlimits {
        let (soft, current) = sys::rlimit(*resource).map_err(|e| kernel(Stage::Limits, name(*resource), e))?;
        if *hard > current {
            // The limit as such is set later: a low one would hinder what is still to do.
            let _ = sys::set_rlimit(*resource, soft, *hard);
        }
    }
    Ok(())
}

/// Sets the rlimits.
pub fn apply(process: &Process) -> Result<(), Fault> {
    for (resource, soft, hard) in &process.rlimits {
        let fault = |e| kernel(Stage::Limits, name(*resource), e);
        match sys::set_rlimit(*resource, *soft, *hard) {
            Err(e) if not_permitted(&e) => {
                let (_, current) = sys::rlimit(*resource).map_err(fault)?;
                let hard = (*hard).min(current);
                sys::set_rlimit(*resource, (*soft).min(hard), hard).map_err(fault)?;
            }
            result => result.map_err(fault)?,
        }
    }
    Ok(())
}

fn name(resource: u32) -> String {
    format!("rlimit {resource}")
}
