# The artifacts of the paper's tables as a graph of files. Included by the Makefile.
#
# Every target is the artifact.json of an artifact. A stage that finds its artifact made the same way
# leaves it alone, so the recipes touch their target: what is up to date stays so for make too.

SCALE ?= laptop
DOMAINS ?= walker cheetah quadruped stickman
SEEDS ?= 0
METHODS ?= bitagent
TABLE_SEEDS ?= 0 1
BACKBONE ?= $(if $(filter paper,$(SCALE)),internvideo2,offline)
NPROC ?= 1
LAUNCH ?=

MODEL_FREE := iql td3-bc td3
TABLE := $(MODEL_FREE) wm-clip genrl founder bitagent ablation-base ablation-mllm ablation-tamf

TASKS_walker := stand walk run
TASKS_cheetah := run
TASKS_quadruped := stand walk run
TASKS_stickman := stand walk run

HEAVY := $(strip $(LAUNCH) $(BITAGENT))
TRAIN := $(if $(filter-out 1,$(NPROC)),$(strip $(LAUNCH) $(BIN)/torchrun --standalone --nproc-per-node $(NPROC) -m bitagent_cli),$(HEAVY))

root = $(RUNS)/$(1)-$(SCALE)
options = --preset $(1) --scale $(SCALE) --out $(call root,$(1)) --quiet
datasets = random $(addprefix expert-,$(TASKS_$(1)))
data = $(foreach n,$(call datasets,$(1)),$(call root,$(1))/data/$(n)/artifact.json)
embeddings = $(foreach n,$(call datasets,$(1)),$(call root,$(1))/embeddings/$(subst /,--,$(BACKBONE))/$(n)/artifact.json)
scores = $(foreach m,$(METHODS),$(foreach s,$(SEEDS),$(foreach t,$(TASKS_$(1)),$(call root,$(1))/evaluation/$(m)-s$(s)/$(t)/artifact.json)))

.PHONY: reproduce
reproduce: $(foreach d,$(DOMAINS),$(call root,$(d))/report/artifact.json) ## tables and figures (SCALE= DOMAINS= SEEDS= METHODS= LAUNCH= NPROC=)

.PHONY: table
table: ## Tables 1 and 2 for walker: every baseline and ablation, two seeds (SCALE= TABLE_SEEDS=)
	$(MAKE) reproduce DOMAINS=walker METHODS="$(TABLE)" SEEDS="$(TABLE_SEEDS)"

# $(1) domain, $(2) dataset, $(3) options
define dataset
$(call root,$(1))/data/$(2)/artifact.json: | $(READY)
	$(HEAVY) collect $(call options,$(1)) $(3)
	@touch $$@
endef

# $(1) domain
define domain
$(eval $(call dataset,$(1),random,--source random))
$(foreach t,$(TASKS_$(1)),$(eval $(call dataset,$(1),expert-$(t),--source expert --task $(t))))

$(call embeddings,$(1)) &: $(call data,$(1))
	$(HEAVY) embed $(call options,$(1)) --backbone $(BACKBONE)
	@touch $(call embeddings,$(1))

$(call root,$(1))/report/artifact.json: $(call scores,$(1))
	$(BITAGENT) visualize $(call options,$(1))
	@touch $$@
endef

# $(1) domain, $(2) method, $(3) seed
define model
$(call root,$(1))/model/$(2)-s$(3)/artifact.json: $(call embeddings,$(1))
	$(TRAIN) pretrain $(call options,$(1)) --method $(2) --seed $(3) --set pretrain.backbone=$(BACKBONE)
	@touch $$@
endef

# $(1) domain, $(2) method, $(3) seed, $(4) task: a model-free method learns from data and embeddings, the others on their model
define policy
$(call root,$(1))/policy/$(2)-s$(3)/$(4)/artifact.json: $(if $(filter $(2),$(MODEL_FREE)),$(call embeddings,$(1)),$(call root,$(1))/model/$(2)-s$(3)/artifact.json)
	$(HEAVY) behave $(call options,$(1)) --method $(2) --seed $(3) --task $(4)$(if $(filter $(2),$(MODEL_FREE)), --set pretrain.backbone=$(BACKBONE))
	@touch $$@

$(call root,$(1))/evaluation/$(2)-s$(3)/$(4)/artifact.json: $(call root,$(1))/policy/$(2)-s$(3)/$(4)/artifact.json
	$(HEAVY) evaluate $(call options,$(1)) --method $(2) --seed $(3) --task $(4)
	@touch $$@
endef

$(foreach d,$(DOMAINS),$(eval $(call domain,$(d))))
$(foreach d,$(DOMAINS),$(foreach m,$(filter-out $(MODEL_FREE),$(METHODS)),$(foreach s,$(SEEDS),$(eval $(call model,$(d),$(m),$(s))))))
$(foreach d,$(DOMAINS),$(foreach m,$(METHODS),$(foreach s,$(SEEDS),$(foreach t,$(TASKS_$(d)),$(eval $(call policy,$(d),$(m),$(s),$(t)))))))
