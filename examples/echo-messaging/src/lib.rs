//! Answers messages: whatever arrives is published back to the subject the sender waits on.
//!
//! The subjects it listens to are not its business; they are configuration of the host interface
//! `wasmcloud:messaging` in the workload's manifest (`subscriptions: tasks.echo`).

use exports::wasmcloud::messaging::handler::Guest;
use wasmcloud::messaging::consumer;
use wasmcloud::messaging::types::BrokerMessage;

wit_bindgen::generate!({
    path: "../../wit/messaging-0.2",
    inline: "
        package example:echo;
        world echo {
            import wasmcloud:messaging/consumer@0.2.0;
            export wasmcloud:messaging/handler@0.2.0;
        }
    ",
    generate_all,
});

struct Echo;

export!(Echo);

impl Guest for Echo {
    /// Called by the host once per message; an error is logged there with its text.
    fn handle_message(message: BrokerMessage) -> Result<(), String> {
        // Nobody waits for an answer: a plain publish, not a request.
        let Some(subject) = message.reply_to else {
            return Ok(());
        };
        consumer::publish(&BrokerMessage {
            subject,
            body: message.body,
            reply_to: None,
        })
    }
}
