package engine

// AgentSocket is the agent's own socket. What goes there is not checked
// against the API's description: it is for hostile requests and for figures.
func (e *Engine) AgentSocket() string { return e.agentSocket }
