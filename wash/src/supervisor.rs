//! What systemd is told of a host: sd_notify(3). Without systemd nobody is told, and nothing fails.

use std::time::Duration;

use sd_notify::NotifyState;
use washlet::drain::Drain;
use washlet::health::Health;

/// The host serves; `status` is what `systemctl status` shows.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What `systemctl status` shows from now on.
pub(crate) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The host comes down.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Has the control plane show that it runs, if systemd watches, until `control` stops.
pub(crate) fn watch(health: Health, control: &Drain) {
    let Some(within) = sd_notify::watchdog_enabled() else {
        return;
    };
    // Often enough that one that comes late is no matter.
    let every = (within / 3).max(Duration::from_millis(1));
    let owner = control.clone();
    control.spawn("watchdog", async move {
        loop {
            if health.is_alive() {
                tell(&[NotifyState::Watchdog]);
            }
            tokio::select! {
                () = owner.stopping() => return,
                () = tokio::time::sleep(every) => {}
            }
        }
    });
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told how this host is");
    }
}
