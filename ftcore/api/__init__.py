"""What a plugin's author imports: kinds of component, samples, the plan, the registry. Imports no torch."""
