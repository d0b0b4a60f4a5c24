# `make results`: docs/results.md anew, from nothing or from what is done. Included by the Makefile.

RESULT_SEEDS ?= 0 1 2

on = --preset $(1) --scale laptop --out $(RUNS)/$(1)-laptop --seed $(2)

# $(1) domain, $(2) seed, $(3) what the policy is asked for, $(4) options of its evaluation alone
define policy_and_score
$(BITAGENT) behave $(call on,$(1),$(2)) $(3)
$(BITAGENT) evaluate $(call on,$(1),$(2)) $(3) $(4)

endef

# $(1) task, $(2) seed: the control row
define oracle_and_score
$(BITAGENT) behave $(call on,walker,$(2)) --task $(1) --oracle-reward
$(BITAGENT) evaluate $(call on,walker,$(2)) --task $(1) --method bitagent-oracle

endef

# $(1) seed
define walker_results
$(BITAGENT) pretrain $(call on,walker,$(1))
$(foreach t,stand walk run,$(call policy_and_score,walker,$(1),--task $(t)))
$(call policy_and_score,walker,$(1),--tasks stand$(comma)walk$(comma)run)

endef

# $(1) seed: prompts that no label of the data has, and the control row
define walker_extras
$(call policy_and_score,walker,$(1),--prompt "lying down",--score-as lying_down)
$(call policy_and_score,walker,$(1),--prompt "balance on one leg",--score-as one_foot)
$(call policy_and_score,walker,$(1),--prompt "sit on your knees",--score-as sit_knees)
$(foreach t,stand walk run,$(call oracle_and_score,$(t),$(1)))

endef

# $(1) domain, $(2) tasks: on one seed
define body_results
$(BITAGENT) collect $(call on,$(1),0) --source random
$(foreach t,$(2),$(BITAGENT) collect $(call on,$(1),0) --source expert --task $(t)
)
$(BITAGENT) embed $(call on,$(1),0)
$(BITAGENT) pretrain $(call on,$(1),0)
$(foreach t,$(2),$(call policy_and_score,$(1),0,--task $(t)))
$(BITAGENT) visualize $(call on,$(1),0)

endef

comma := ,
tables = $(addprefix $(RUNS)/$(1)-laptop/report/,$(2))

results: $(READY) ## docs/results.md anew: walker at laptop scale (RESULT_SEEDS=), and one seed of cheetah and stickman
	$(BITAGENT) collect $(call on,walker,0)
	$(BITAGENT) embed $(call on,walker,0)
	$(foreach s,$(RESULT_SEEDS),$(call walker_results,$(s)))
	$(call walker_extras,$(firstword $(RESULT_SEEDS)))
	$(BITAGENT) visualize $(call on,walker,0) --reward
	$(call body_results,cheetah,run)
	$(call body_results,stickman,stand walk)
	{ echo "# Results"; \
	  echo; echo "Made by \`make results\`. Walker, laptop scale, seeds $(RESULT_SEEDS), 10 episodes a score."; echo; \
	  cat $(call tables,walker,scores.md multi-task.md prompts.md reward-rank.md ledger.md); \
	  echo; echo "## Cheetah"; echo; cat $(call tables,cheetah,scores.md ledger.md); \
	  echo; echo "## Stickman"; echo; cat $(call tables,stickman,scores.md ledger.md); } > docs/results.md
