//! postStart and preStop: what a hook does, and how its failure reads.
//! <https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/>

use std::time::Duration;

use k8s_openapi::api::core::v1 as k8s;

use super::handler::{self, Commands, Ended, Subject, Verdict};
use super::recorder::Level;
use crate::runtime::Redaction;

/// Of what a hook's command printed, so much is told.
const TOLD: usize = 1024;

/// The container's postStart hook.
pub fn post_start(container: &k8s::Container) -> Option<&k8s::LifecycleHandler> {
    container.lifecycle.as_ref()?.post_start.as_ref()
}

/// The container's preStop hook.
pub fn pre_stop(container: &k8s::Container) -> Option<&k8s::LifecycleHandler> {
    container.lifecycle.as_ref()?.pre_stop.as_ref()
}

/// Runs a hook to its end, which is no later than `limit` from now. An answer over HTTP is one, whatever its status.
pub async fn run(subject: &Subject, hook: &k8s::LifecycleHandler, limit: Duration) -> Result<(), String> {
    let late = || format!("it did not return within {:.0} s", limit.as_secs_f64().ceil());
    if let Some(action) = &hook.exec {
        let command = action.command.as_deref().unwrap_or_default();
        return match Commands::default().run(subject, command, limit).await? {
            (Ended::Exit(0), _) => Ok(()),
            (Ended::Exit(code), output) => Err(exited(subject, command, code, &output)),
            (Ended::Late, _) => Err(late()),
        };
    }
    if let Some(action) = &hook.http_get {
        let asked = handler::http_hook(subject, action, limit).await;
        if let Ok(Some(fallback)) = &asked {
            let name = Some(subject.container.name.as_str());
            subject.node.recorder.pod(&subject.pod, name, Level::Warning, "LifecycleHTTPFallback", fallback);
        }
        return asked.map(drop).map_err(|error| error.to_string());
    }
    if let Some(action) = &hook.tcp_socket {
        return match handler::tcp(subject, action, limit).await {
            Verdict::Success | Verdict::Warning(_) => Ok(()),
            Verdict::Failure(why) | Verdict::Unknown(why) => Err(why),
        };
    }
    if let Some(action) = &hook.sleep {
        let pause = Duration::from_secs(u64::try_from(action.seconds).unwrap_or_default());
        tokio::time::sleep(pause.min(limit)).await;
        return Ok(());
    }
    Err("it has no handler".into())
}

fn exited(subject: &Subject, command: &[String], code: i32, output: &str) -> String {
    let words = format!("command {:?} exited with {code}", command.join(" "));
    let output = output.trim();
    if output.is_empty() {
        return words;
    }
    let end = (0..=output.len().min(TOLD)).rev().find(|i| output.is_char_boundary(*i)).unwrap_or(0);
    Redaction::of(&subject.pod, subject.node.objects.of(&subject.pod)).hide(format!("{words}: {}", &output[..end]))
}
