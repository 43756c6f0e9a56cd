//! Chat templates: the Jinja program beside a tokenizer that writes a conversation as
//! the text which its model was trained on.
use super::{
    guarded::{Failure, brief, guarded},
    jinja::prepare,
    python,
    rows::RowResult,
    strftime::{now, strftime},
};
use crate::{Error, Result};
use minijinja::{
    Environment, State, Value, context, escape_formatter, syntax::SyntaxConfig,
    value::ValueKind,
};
use std::{path::Path, time::Duration};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn by `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template.
pub(super) struct ChatTemplate(Environment<'static>);

const NAME: &str = "chat template";
/// How long a conversation may take.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

impl ChatTemplate {
    /// Compiles `source`, found in `file`, in the environment that Transformers gives
    /// to templates; `special` holds its `bos_token`, `eos_token` and their like.
    pub(super) fn new(
        source: &str,
        file: &Path,
        special: Vec<(String, String)>,
    ) -> Result<Self> {
        let compiled = prepare(source).and_then(|source| {
            let made = guarded(LIMIT, move || environment(source, special));
            made.unwrap_or_else(|failure| Err(reason(failure)))
        });
        compiled.map(Self).map_err(|what| {
            Error::file(file, format!("`chat_template` does not compile: {what}"))
        })
    }

    /// The conversation as text; `answer` adds the words that ask for the next
    /// assistant turn, one with reasoning if `thinking` (where the template has the
    /// choice, as V3.1's has). The error is the template's own reason.
    ///
    /// To be called on a [`guarded`] thread, which alone has the stack for it.
    pub(super) fn render(
        &self,
        messages: &[Message],
        answer: bool,
        thinking: bool,
    ) -> RowResult<String> {
        let turns = messages
            .iter()
            .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
            .collect::<Vec<Value>>();
        let template = self.0.get_template(NAME).map_err(|e| e.to_string())?;
        // There, and none: a template may ask for either.
        let given = context! {
            messages => turns, tools => (), documents => (),
            add_generation_prompt => answer,
        };
        // Left undefined otherwise: a template may ask whether it is.
        let given = match thinking {
            true => context! { thinking => true, ..given },
            false => given,
        };
        let refuses =
            |e: minijinja::Error| format!("the chat template refuses: {}", said(&e));
        template.render(given).map_err(refuses)
    }
}

/// What ended a template's thread, for a message.
pub(super) fn reason(failure: Failure) -> String {
    match failure {
        Failure::Late => {
            let seconds = LIMIT.as_secs();
            format!("the chat template does not come to an end within {seconds} s")
        }
        Failure::Panic(what) => {
            format!("the chat template cannot be rendered: {what}")
        }
    }
}

fn said(e: &minijinja::Error) -> String {
    brief(&e.to_string())
}

fn environment(
    source: String,
    special: Vec<(String, String)>,
) -> RowResult<Environment<'static>> {
    let mut env = Environment::new();
    let syntax =
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(|e| said(&e))?);
    // A template is somebody else's program: it may not run for ever.
    env.set_fuel(Some(5_000_000));
    env.set_formatter(|out, state, value| {
        if value.kind() == ValueKind::Number && !value.is_integer() {
            let text = f64::try_from(value.clone()).map(python::float)?;
            return Ok(out.write_str(&text)?);
        }
        python::bounded(state, value)?;
        escape_formatter(out, state, value)
    });
    env.set_unknown_method_callback(python::method);
    env.remove_global("debug");
    env.add_filter("tojson", python::tojson);
    env.add_filter("kept", |state: &State, value: Value| {
        python::bounded(state, &value).map(|()| value)
    });
    env.add_filter("kept_in_namespace", |state: &State, value: Value| {
        python::without_namespace(&value)?;
        python::bounded(state, &value).map(|()| value)
    });
    let sequence = [ValueKind::Seq, ValueKind::Map, ValueKind::String];
    env.add_test("sequence", move |value: &Value| sequence.contains(&value.kind()));
    env.add_function("raise_exception", |why: String| python::refuse::<String>(why));
    env.add_function("strftime_now", |format: String| {
        strftime(&format, now()).or_else(python::refuse)
    });
    for (name, token) in special {
        env.add_global(name, token);
    }
    env.add_template_owned(NAME, source).map_err(|e| said(&e))?;
    Ok(env)
}
