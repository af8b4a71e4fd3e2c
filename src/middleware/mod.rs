//! Plug-ins around an exchange.
//!
//! A route's middleware is a [`Chain`], built with the route. Requests go through it first to last, responses last to first,
//! so that what comes first in the chain is outermost both ways.

use std::fmt;
use std::ops::ControlFlow;

use http::{Response, response};

use crate::config::RouteConfig;
use crate::exchange::body::Body;
use crate::exchange::{Exchange, RequestHead};

mod headers;

use headers::Headers;

/// A plug-in around an exchange. Its hooks are called on the request path: no I/O, no waiting.
pub trait Middleware: fmt::Debug + Send + Sync {
    /// Before a backend is picked. [`ControlFlow::Break`] answers the request: it goes no further.
    fn on_request(&self, _: &mut RequestHead, _: &Exchange) -> ControlFlow<Response<Body>> {
        ControlFlow::Continue(())
    }

    /// Before the head of the response goes to the client.
    fn on_response(&self, _: &mut response::Parts, _: &Exchange) {}
}

/// The middleware of a route, outermost first.
#[derive(Debug, Default)]
pub struct Chain(Box<[Box<dyn Middleware>]>);

impl Chain {
    /// Shows the request to each hook until one answers. That answer has then been shown to the hooks outside of the one
    /// that gave it, as a response from a backend would be: it needs no [`Chain::on_response`].
    pub fn on_request(&self, head: &mut RequestHead, exchange: &Exchange) -> ControlFlow<Response<Body>> {
        for (inside_of, middleware) in self.0.iter().enumerate() {
            if let ControlFlow::Break(answer) = middleware.on_request(head, exchange) {
                let (mut head, body) = answer.into_parts();
                respond(&self.0[..inside_of], &mut head, exchange);
                return ControlFlow::Break(Response::from_parts(head, body));
            }
        }
        ControlFlow::Continue(())
    }

    /// Shows the response to each hook, innermost first.
    pub fn on_response(&self, parts: &mut response::Parts, exchange: &Exchange) {
        respond(&self.0, parts, exchange);
    }

    /// Whether there is no middleware.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn respond(chain: &[Box<dyn Middleware>], parts: &mut response::Parts, exchange: &Exchange) {
    for middleware in chain.iter().rev() {
        middleware.on_response(parts, exchange);
    }
}

/// The middleware that a route asks for.
pub fn build(config: &RouteConfig) -> Chain {
    let mut chain: Vec<Box<dyn Middleware>> = Vec::new();
    if !config.request_headers.is_empty() || !config.response_headers.is_empty() {
        chain.push(Box::new(Headers::new(config.request_headers.clone(), config.response_headers.clone())));
    }
    Chain(chain.into())
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request, StatusCode};

    use super::*;
    use crate::exchange::testing::exchange;

    /// Writes its letter into `x-seen` both ways; answers where the request's path is its letter.
    #[derive(Debug)]
    struct Letter(&'static str);

    impl Middleware for Letter {
        fn on_request(&self, head: &mut RequestHead, _: &Exchange) -> ControlFlow<Response<Body>> {
            if head.uri.path()[1..] == *self.0 {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::FORBIDDEN;
                return ControlFlow::Break(response);
            }
            head.headers().append("x-seen", HeaderValue::from_static(self.0));
            ControlFlow::Continue(())
        }

        fn on_response(&self, parts: &mut response::Parts, _: &Exchange) {
            parts.headers.append("x-seen", HeaderValue::from_static(self.0));
        }
    }

    fn letters() -> Chain {
        Chain(Box::new([Box::new(Letter("a")), Box::new(Letter("b")), Box::new(Letter("c"))]))
    }

    fn request(path: &str) -> RequestHead {
        Request::get(path).body(()).unwrap().into_parts().0.into()
    }

    fn seen(headers: &http::HeaderMap) -> Vec<&str> {
        headers.get_all("x-seen").iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn requests_go_in_and_responses_come_out() {
        let mut head = request("/");
        assert!(letters().on_request(&mut head, &exchange()).is_continue());
        assert_eq!(seen(head.headers()), ["a", "b", "c"]);

        let mut response = Response::new(()).into_parts().0;
        letters().on_response(&mut response, &exchange());
        assert_eq!(seen(&response.headers), ["c", "b", "a"]);
    }

    #[test]
    fn an_answer_goes_out_through_those_outside_of_it() {
        for (path, went_in, came_out) in
            [("/a", &[][..], &[][..]), ("/b", &["a"], &["a"]), ("/c", &["a", "b"], &["b", "a"])]
        {
            let mut head = request(path);
            let ControlFlow::Break(answer) = letters().on_request(&mut head, &exchange()) else {
                panic!("{path}: no answer")
            };
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
            assert_eq!(seen(head.headers()), went_in, "{path}");
            assert_eq!(seen(answer.headers()), came_out, "{path}");
        }
    }

    #[test]
    fn an_empty_chain_does_nothing() {
        let mut head = request("/a");
        assert!(Chain::default().is_empty());
        assert!(Chain::default().on_request(&mut head, &exchange()).is_continue());
        assert!(head.headers().is_empty());
    }
}
